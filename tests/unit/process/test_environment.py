"""Promises about what a zygote and a worker find in their environment."""

from __future__ import annotations

import pytest

from piecework.process import environment


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://shop:s3cret@db/shop", "postgresql://shop:withheld%3A@db/shop"),
        ("postgresql://shop:s3/cr@et@db:5432/shop", "postgresql://shop:withheld%3A@db:5432/shop"),
        ("redis://:s3cret@cache:6379", "redis://:withheld%3A@cache:6379"),
        ("postgresql:///shop?user=u&password=s3cret&x=1", "postgresql:///shop?user=u&password=withheld:&x=1"),
        ("http://registry:8080/@scope/x", "http://registry:8080/@scope/x"),
        ("mail me@example.org: soon", "mail me@example.org: soon"),
    ],
)
def test_password_in_url(url, shown):
    """The password inside a URL is withheld, and nothing else of it."""
    assert environment.without_password(url) == shown


def test_secrets_are_withheld():
    """A secret is there by name, and its value is not."""
    assert environment.without_secrets({"IDENTITY": "/key", "A": "1"}) == {"IDENTITY": "withheld:", "A": "1"}


def test_real_environment_is_small():
    """Only what an interpreter needs to start is in the real environment."""
    given = {"PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "/x", "TOKEN": "t"}
    assert environment.real(given) == {"PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "/x"}


def test_worker_layer():
    """A worker has the few variables that every program needs, under its own layer."""
    assert environment.for_worker({"PATH": "/bin", "HOME": "/h", "A": "1"}, {"HOME": "/w"}) == {
        "PATH": "/bin",
        "HOME": "/w",
    }
