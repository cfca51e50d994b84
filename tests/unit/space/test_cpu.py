from __future__ import annotations

from piecework.space.cpu import CpuBook


def test_one_run_is_charged_with_all_of_it():
    """What a worker with one run uses is that run's, whoever's code was seen."""
    book = CpuBook(1.0)
    assert book.charge(0.9, None, 0.0, ["a"]) == []
    assert book.charge(1.1, "b", 0.2, ["a"]) == ["a"]


def test_of_several_the_one_whose_code_ran_is_charged():
    """What is known to be one run's counts for no other."""
    book = CpuBook(1.0)
    assert book.charge(0.9, "a", 0.9, ["a", "b"]) == []
    assert book.charge(1.8, "b", 0.9, ["a", "b"]) == []
    assert book.charge(2.0, "b", 0.2, ["a", "b"]) == ["b"]


def test_what_is_unclear_counts_for_each():
    """What nobody can place may be each run's: when that alone is too much, all are under suspicion."""
    book = CpuBook(1.0)
    assert book.charge(0.9, None, 0.0, ["a", "b"]) == []
    assert book.charge(1.0, "a", 0.1, ["a", "b"]) == []
    assert book.charge(1.2, None, 0.0, ["a", "b"]) == ["a", "b"]


def test_what_was_charged_early_is_not_unclear_later():
    """A run may be charged before the total shows it; the total that follows is then not somebody else's too."""
    book = CpuBook(1.0)
    for step in range(1, 20):
        assert book.charge(step * 0.04, "a", 0.05, ["a", "b"]) == []
    assert book.charge(20 * 0.04 + 0.95, None, 0.0, ["a", "b"]) == []


def test_a_run_begins_with_nothing():
    """What runs have used that have ended is no charge for those that come later."""
    book = CpuBook(1.0)
    for run_id in ("a", "b", "c"):
        book.charge(book._total + 0.9, None, 0.0, [run_id])
    assert book.charge(2.8, None, 0.0, ["d"]) == []
    assert CpuBook(None).charge(1e9, None, 0.0, ["a"]) == []
