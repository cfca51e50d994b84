"""Promises about a run's outcome as a value."""

from __future__ import annotations

import warnings

import pytest

from piecework.errors import AbortedError, ExecutionFailedError, NotFoundError, TimeoutExceededError
from piecework.workflow.result import Result, RunMetadata, RunValue, error_from


def a_failure():
    return Result(error=NotFoundError("no workflow 'x'"), metadata=RunMetadata("r-1", "failed"))


def unwrap(result):
    with pytest.raises(NotFoundError):
        result.unwrap()


def test_a_good_result():
    """A result that is ok has a value and no error."""
    value = RunValue("completed", {"n": 1})
    result = Result(value=value, metadata=RunMetadata("r-1", "completed"))
    assert (result.ok, result.value, result.error, result.unwrap()) == (True, value, None, value)
    assert result.metadata.run_id == "r-1"


def test_a_bad_result():
    """A result that is not ok has an error and no value; unwrapping it raises the error itself."""
    result = a_failure()
    assert (result.ok, result.value, result.error.code) == (False, None, "NOT_FOUND")
    with pytest.raises(NotFoundError) as caught:
        result.unwrap()
    assert caught.value is result.error


def test_a_failure_that_nobody_looked_at():
    """A failed result that is dropped unseen warns, and the warning says what it was."""
    with pytest.warns(ResourceWarning, match="no workflow 'x'.*check .ok or call .unwrap"):
        a_failure()


@pytest.mark.parametrize("look", [lambda r: r.ok, lambda r: r.error, unwrap])
def test_a_failure_that_somebody_looked_at(look):
    """Looking at a failed result in any way is enough."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look(a_failure())


def test_a_success_may_be_dropped():
    """Nobody has to look at a success."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Result(value=RunValue("completed", {}))


@pytest.mark.parametrize(
    ("code", "cls"),
    [("ABORTED", AbortedError), ("TIMEOUT", TimeoutExceededError), ("EXECUTION_FAILED", ExecutionFailedError)],
)
def test_a_stored_error_comes_back_as_its_class(code, cls):
    """The error of a run is the class that has its code, with the stored sentence."""
    error = error_from({"code": code, "message": "what happened", "type": "x.Y"})
    assert (type(error), error.message, error.type) == (cls, "what happened", "x.Y")


@pytest.mark.parametrize("stored", [{"code": "OF_A_LATER_VERSION", "message": "no"}, {"message": "no"}, {}])
def test_a_stored_error_of_another_version(stored):
    """A code that is not known here is a failed execution."""
    assert type(error_from(stored)) is ExecutionFailedError
