"""Promises about what is taken out of log lines and timelines."""

from __future__ import annotations

import pytest

from piecework.telemetry.redaction import PLAIN, REDACTED, Redaction, secret_values


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "db_password",
        "userPassword",
        "token",
        "access_token",
        "accessToken",
        "client-secret",
        "API_KEY",
        "apiKey",
        "Authorization",
        "aws_secret_access_key",
        "credentials",
        "cookie",
    ],
)
def test_names_that_look_like_secrets(name):
    """What stands under such a name is replaced, however the name is written and whatever it is, at any depth."""
    assert PLAIN.fields({name: "hush"}) == {name: REDACTED}
    assert PLAIN.fields({"a": [{name: {"x": 1}}]}) == {"a": [{name: REDACTED}]}


@pytest.mark.parametrize(
    "field", [{"secretary": "Ada"}, {"tokens": 512}, {"token_count": 3}, {"key": "k"}, {"password": None}, {"pass": 1}]
)
def test_what_only_sounds_like_a_secret(field):
    """Other names, counts of tokens, and the absence of a secret are left as they are."""
    assert PLAIN.fields(field) == field


def test_names_of_ones_own():
    """More names can be given, and are found within longer ones."""
    assert Redaction(names=["iban"]).fields({"user_IBAN": "DE00", "n": 1}) == {"user_IBAN": REDACTED, "n": 1}


def test_secret_values_in_texts():
    """A secret value is replaced wherever it occurs in a text; of overlapping ones nothing is left; short ones stay."""
    redaction = Redaction(values=["abcdef", "abcdefghi", "on"])
    assert redaction.text("x=abcdefghi y=abcdef on") == f"x={REDACTED} y={REDACTED} on"
    assert redaction.fields({"a": ["no abcdef"]}) == {"a": [f"no {REDACTED}"]}


def test_which_variables_are_secret():
    """All of a layer that was given; of the process's environment those that say so by name or hold a password."""
    layer = {"REGION": "eu-central", "DB_PASSWORD": "hush-hush", "URL": "postgres://u:pw@h/db", "GONE": None}
    layer |= {"PWD": "/srv/app"}
    assert secret_values(layer, given=True) == ["eu-central", "hush-hush", "postgres://u:pw@h/db", "/srv/app"]
    assert secret_values(layer, given=False) == ["hush-hush", "postgres://u:pw@h/db"]
