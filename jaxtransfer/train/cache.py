"""What is asked of a cache of activations, and what is told of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtransfer.errors import TrainingError
from jaxtransfer.train.activations import DTYPES, PLACES
from jaxtransfer.tree.summary import format_bytes


@dataclass(frozen=True)
class Cache:
    """How what is frozen below everything that trains is computed once, and kept.

    Attributes:
        views: how often each example is computed, augmented anew each time; epoch e trains on view
            e modulo `views`. Without an augmentation one view is all there is.
        dtype: in which activations are kept: "float32" changes nothing; "bfloat16" and "int8" take
            a half and a quarter of its memory, and the report says what they change.
        where: "device", "host" (in its memory), "disk" (a file that is gone afterwards), or "auto"
            for the first of these that they fit in.
        limit: bytes that they may take at most, by default a quarter of the memory of the device or
            the host, and of what is free on the disk.
        folder: for the file; without one "auto" uses no disk.
        required: whether it is an error if no plan of the run can be carried out like this; else a
            plan trains without, and the report says why.

    Raises:
        TrainingError: an attribute is out of range.
    """

    views: int = 1
    dtype: str = "float32"
    where: str = "auto"
    limit: int | None = None
    folder: str | Path | None = None
    required: bool = False

    def __post_init__(self) -> None:
        places = ("auto", *PLACES)
        problems = [
            f"{name} {text}, found {getattr(self, name)!r}"
            for name, fits, text in (
                ("views", isinstance(self.views, int) and self.views >= 1, "whole, of at least 1"),
                ("dtype", self.dtype in DTYPES, f"among {', '.join(DTYPES)}"),
                ("where", self.where in places, f"among {', '.join(places)}"),
                ("limit", _is_limit(self.limit), "a number of bytes, or None"),
                ("folder", self.where != "disk" or self.folder is not None, "for where='disk'"),
            )
            if not fits
        ]
        if problems:
            raise TrainingError(f"Cache: expected {'; '.join(problems)}")

    def identity(self, augments: bool) -> dict[str, str]:
        """What of it changes a run's numbers beyond rounding, to be told apart from other runs.

        Args:
            augments: whether the run augments images; without, views are all the same.
        """
        views = self.views if augments else 1
        changes = views > 1 or self.dtype != "float32"
        return {"cache": f"{views} views, {self.dtype}"} if changes else {}


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and value >= 0)


NAMED = {"auto": Cache(), "always": Cache(required=True), "never": None}
"""What `cache` can be beside a `Cache`."""


def as_cache(cache: Cache | str | None) -> Cache | None:
    """A `Cache` from what someone asked for; `None` for none.

    Raises:
        TrainingError: it is neither a `Cache` nor a name that is known.
    """
    if cache is None or isinstance(cache, Cache):
        return cache
    if cache not in NAMED:
        raise TrainingError(
            f"cache: expected {', '.join(map(repr, NAMED))} or a jt.Cache, found {cache!r}"
        )
    return NAMED[cache]


@dataclass(frozen=True)
class CacheReport:
    """Whether a plan was trained on activations that were computed once, and what that took.

    Attributes:
        plan: its name.
        reason: why not; empty where it was.
        stage: the stage that they enter.
        where: "device", "host" or "disk".
        dtype: in which they are kept.
        views: how many there are of each training example.
        examples: how many training and validation examples there are.
        bytes: what all of them take.
        seconds: what it took to compute them.
        maximal_error: the largest difference that `dtype` makes, as a share of the largest absolute
            value of its channel among the examples of a batch.
        mean_error: the sum of all differences as a share of the sum of all absolute values.
    """

    plan: str
    reason: str = ""
    stage: str | None = None
    where: str | None = None
    dtype: str | None = None
    views: int = 0
    examples: int = 0
    bytes: int = 0
    seconds: float = 0.0
    maximal_error: float = 0.0
    mean_error: float = 0.0

    @property
    def is_used(self) -> bool:
        """Whether there are such activations."""
        return self.stage is not None

    def __str__(self) -> str:
        """One line for people."""
        if not self.is_used:
            return f"{self.plan}: nothing cached, since {self.reason}"
        views = f" in {self.views} views" if self.views > 1 else ""
        place = {"device": "on the device", "host": "in memory", "disk": "on disk"}[str(self.where)]
        text = (
            f"{self.plan}: what enters {self.stage} computed once in {self.seconds:.1f} s, "
            f"{self.examples} examples{views}, {format_bytes(self.bytes)} of {self.dtype} {place}"
        )
        if not self.maximal_error:
            return text
        return (
            f"{text}, which changes it by {self.mean_error:.2%} on average, and by at most "
            f"{self.maximal_error:.2%} of a channel's largest value"
        )

    def to_dict(self) -> dict[str, Any]:
        """All attributes, as JSON can hold them."""
        return asdict(self)
