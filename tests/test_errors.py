from __future__ import annotations

import inspect
import re

import pytest

from jaxtransfer import errors

CLASSES = {
    name: member
    for name, member in inspect.getmembers(errors, inspect.isclass)
    if member.__module__ == errors.__name__
}


def drawn_tree() -> dict[str, tuple[str | None, str]]:
    """Name -> (parent, what it says), read from the drawing at the top of errors.py."""
    drawn: dict[str, tuple[str | None, str]] = {}
    ancestors: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^(    [│├└─ ]*)(\w+Error)\b *(.*)$", line)
        if not found:
            continue
        column, name, text = len(found[1]), found[2], found[3]
        ancestors = [(c, n) for c, n in ancestors if c < column]
        drawn[name] = (ancestors[-1][1] if ancestors else None, text)
        ancestors.append((column, name))
    return drawn


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_error_is_a_jaxtransfer_error_with_a_docstring(name: str) -> None:
    error = CLASSES[name]
    assert issubclass(error, errors.JaxTransferError)
    assert not issubclass(error, (ValueError, KeyError, AssertionError))
    assert (error.__doc__ or "").strip()
    assert str(error("stem/kernel: expected 3 channels")) == "stem/kernel: expected 3 channels"


def test_the_drawing_lists_exactly_the_classes() -> None:
    assert set(drawn_tree()) == set(CLASSES)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_drawing_shows_each_class_below_its_base_with_its_meaning(name: str) -> None:
    parent, text = drawn_tree()[name]
    assert CLASSES[name].__bases__ == (CLASSES[parent] if parent else Exception,)
    if text:
        first_line = (CLASSES[name].__doc__ or "").splitlines()[0]
        assert text.lower() == first_line.rstrip(".").lower()
