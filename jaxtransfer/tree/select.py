"""Choose leaves by patterns over their names; a pattern that matches nothing is an error."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Sequence

from jaxtransfer.errors import PatternError
from jaxtransfer.tree.names import SEPARATOR, leaf_names
from jaxtransfer.types import Pattern, PyTree, Selection, Selector


def matches(pattern: Pattern, name: str) -> bool:
    """Whether a pattern matches a leaf's whole name.

    In a glob `*` stands for one segment or a part of one, `**` for any number of segments, and
    `{a,b}` for either alternative. A compiled regular expression must match the whole name.

    Raises:
        PatternError: a glob has a brace without its partner.

    >>> matches("layer{3,4}/**/kernel", "layer4/0/conv2/kernel")
    True
    >>> matches("head/*", "head/dense/kernel")
    False
    """
    if isinstance(pattern, re.Pattern):
        return pattern.fullmatch(name) is not None
    return _glob(pattern).fullmatch(SEPARATOR + name if name else "") is not None


def matches_any(patterns: Iterable[Pattern], name: str) -> bool:
    """Whether one of several patterns matches a leaf's whole name."""
    return any(matches(pattern, name) for pattern in patterns)


@functools.lru_cache(maxsize=4096)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile("|".join(_segments_to_regex(text) for text in _expand_braces(pattern)))


def _segments_to_regex(glob: str) -> str:
    """A regular expression for `/` + name, in which every segment brings its own leading `/`."""

    def segment_to_regex(segment: str) -> str:
        if segment == "**":
            return f"(?:{SEPARATOR}[^{SEPARATOR}]+)*"
        if segment == "*":
            return f"{SEPARATOR}[^{SEPARATOR}]+"
        return SEPARATOR + f"[^{SEPARATOR}]*".join(map(re.escape, segment.split("*")))

    return "".join(map(segment_to_regex, glob.split(SEPARATOR)))


def _expand_braces(pattern: str) -> list[str]:
    """The globs that a pattern with `{a,b}` alternatives stands for; innermost braces first."""
    inner = re.search(r"\{([^{}]*)\}", pattern)
    if inner is None:
        if "{" in pattern or "}" in pattern:
            raise PatternError(f"pattern {pattern!r}: expected each brace to have its partner")
        return [pattern]
    before, after = pattern[: inner.start()], pattern[inner.end() :]
    expanded = [_expand_braces(before + choice + after) for choice in inner.group(1).split(",")]
    return [glob for globs in expanded for glob in globs]


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that are most like `name`, best first: what someone probably meant.

    >>> nearest("haed/kernel", ["head/kernel", "stem/kernel", "head/bias"], count=1)
    ['head/kernel']
    """
    return difflib.get_close_matches(name, list(names), n=count, cutoff=0.0)


def check_pattern(pattern: Pattern, names: Sequence[str], where: str = "pattern") -> None:
    """Raise `PatternError`, with the nearest names, unless `pattern` matches one of `names`."""
    if any(matches(pattern, name) for name in names):
        return
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    remedy = f"the nearest are {', '.join(nearest(text, names)) or 'none: the tree has no leaves'}"
    if isinstance(pattern, str):
        whole = f"{text.rstrip(SEPARATOR)}{SEPARATOR}**"
        below = sum(matches(whole, name) for name in names)
        if below:
            remedy = f"write {whole!r} for the leaves below it ({below})"
    raise PatternError(
        f"{where} {text!r}: expected to match at least one of {len(names)} names, found no match; "
        f"{remedy}"
    )


def chooser(selection: Selection, names: Sequence[str]) -> Callable[[str], bool]:
    """A predicate on names from any way of choosing leaves; `names` are those it must fit.

    Raises:
        PatternError: a pattern matches none of `names`.
    """
    if isinstance(selection, Selector):
        chosen = dict(zip(names, selection.chooses(names), strict=True))
        return chosen.__getitem__
    if isinstance(selection, (str, re.Pattern)):
        selection = (selection,)
    if callable(selection):
        return selection
    patterns = tuple(selection)
    for pattern in patterns:
        check_pattern(pattern, names)
    return functools.partial(matches_any, patterns)


def select(tree: PyTree, selection: Selection) -> tuple[str, ...]:
    """The names of the leaves that a selection chooses, in the order of `jax.tree.leaves`.

    Args:
        tree: any registered pytree.
        selection: a pattern, several patterns, a predicate on the name, or a plan.

    Raises:
        PatternError: a pattern matches no leaf.

    >>> select({"head": {"bias": 0, "kernel": 0}, "stem": {"kernel": 0}}, "**/kernel")
    ('head/kernel', 'stem/kernel')
    """
    names = leaf_names(tree)
    is_chosen = chooser(selection, names)
    return tuple(name for name in names if is_chosen(name))
