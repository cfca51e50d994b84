"""What goes into the headers of a mail: addresses and single lines, checked so that nothing can be smuggled in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.headerregistry import Address
from email.policy import SMTP
from typing import Any

from piecework.errors import ValidationError

CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
"""Characters that end a line or do worse: none of them belongs into a header."""


def one_address(value: Any, what: str) -> str:
    """Checks an address of which there can be only one.

    Args:
        value: Any value.
        what: Named in the error.

    Raises:
        ValidationError: It is not exactly one mail address.
    """
    found = addresses(value, what)
    if len(found) != 1:
        raise ValidationError(f"{what} has to be one address, not {len(found)}: {value!r:.80}", path=what)
    return found[0]


def addresses(value: Any, what: str) -> list[str]:
    """Checks addresses and writes each as it goes into a header; none is an empty list.

    Args:
        value: One text or several, each with one address or several; None for none.
        what: Named in the error.

    Raises:
        ValidationError: One of them is not a mail address.
    """
    if value is not None and not isinstance(value, Iterable):
        raise ValidationError(f"{what} has to be an address or several, not {value!r:.80}", path=what)
    texts = [value] if isinstance(value, str) else list(value or ())
    return [str(address) for text in texts for address in _parsed(one_line(text, what), what)]


def _parsed(text: str, what: str) -> list[Address]:
    try:
        header: Any = SMTP.header_factory("To", text)
        found = [_addressable(address) for address in header.addresses]
        wrong = header.defects or not found
    except Exception as error:  # the parser raises what it happens to trip over
        raise _no_address(text, what) from error
    if wrong:
        raise _no_address(text, what)
    return found


def _addressable(address: Address) -> Address:
    if not address.username or not address.domain or not address.username.isascii():
        raise ValueError(address)
    domain = address.domain if address.domain.isascii() else address.domain.encode("idna").decode("ascii")
    return Address(address.display_name, address.username, domain)


def _no_address(text: str, what: str) -> ValidationError:
    return ValidationError(
        f"{what} has {text!r:.80}, which is no mail address: write name@example.org or Name <name@example.org>, "
        "in ASCII before the @",
        path=what,
    )


def one_line(text: Any, what: str) -> str:
    """Checks a text that becomes a header.

    Args:
        text: Any value.
        what: Named in the error.

    Raises:
        ValidationError: It is not a text, or has a line break or another control character.
    """
    if not isinstance(text, str):
        raise ValidationError(f"{what} has to be a text, not {text!r:.80}", path=what)
    if CONTROL.search(text):
        raise ValidationError(f"{what} {text!r:.80} has a line break or control character: remove it", path=what)
    return text
