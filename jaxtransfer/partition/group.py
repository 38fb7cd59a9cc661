"""One row of a plan: which leaves it is about, and what happens to them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from jaxtransfer.errors import PlanError
from jaxtransfer.types import Pattern

StatsPolicy = Literal["update", "frozen"]


@dataclass(frozen=True)
class Group:
    """What happens to the leaves that a pattern matches.

    Attributes:
        match: a pattern, or several, over the names of parameters and statistics.
        lr_scale: factor on the learning rate, or a tuple of factors for leaves whose first axis is
            one of blocks, as those of scanned stages are, one for each block. With a tuple,
            optimizers that look at leaves as a whole, such as LAMB and Muon, look at each block.
        weight_decay: decoupled weight decay of the kernels; `None` takes the optimizer's. Biases,
            scales of normalisations, position embeddings and learned tokens are not decayed, as
            `jaxtransfer.partition.decay.is_decayed` says.
        decay_all: whether weight decay is for these too.
        frozen: whether the parameters stay as they are, to the last bit.
        stats: "update" for running statistics that follow the data; "frozen" for modules that
            normalise by the statistics they have, which stay as they are, to the last bit; `None`
            for statistics that are frozen where the parameters are. Where all of a module is frozen
            and so are its statistics, its dropout is off too.
        optimizer: a name in `OPTIMIZERS`, or one that `Plan.optimizer` is told of; `None` takes the
            plan's.

    Raises:
        PlanError: a field is not what it should be; the message lists all that are not.
    """

    match: Pattern | tuple[Pattern, ...]
    lr_scale: float | tuple[float, ...] = 1.0
    weight_decay: float | None = None
    frozen: bool = False
    stats: StatsPolicy | None = None
    optimizer: str | None = None
    decay_all: bool = False

    def __post_init__(self) -> None:
        for name in ("match", "lr_scale"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        problems = []
        if not self.patterns or not all(map(_is_pattern, self.patterns)):
            problems.append(f"match: expected a pattern or several, found {self.match!r}")
        if self.stats not in ("update", "frozen", None):
            problems.append(f"stats: expected 'update', 'frozen' or None, found {self.stats!r}")
        if not self.scales or not all(map(_is_rate, self.scales)):
            expected = "a number from 0, or one for each block"
            problems.append(f"lr_scale: expected {expected}, found {self.lr_scale!r}")
        if self.weight_decay is not None and not _is_rate(self.weight_decay):
            problems.append(f"weight_decay: expected a number from 0, found {self.weight_decay!r}")
        if self.optimizer is not None and not isinstance(self.optimizer, str):
            problems.append(f"optimizer: expected a name or None, found {self.optimizer!r}")
        if problems:
            raise PlanError(f"group {self.match!r}: " + "; ".join(problems))
        # JSON knows Python's numbers alone.
        scales = tuple(map(float, self.scales))
        object.__setattr__(
            self, "lr_scale", scales if isinstance(self.lr_scale, tuple) else scales[0]
        )
        if self.weight_decay is not None:
            object.__setattr__(self, "weight_decay", float(self.weight_decay))

    @property
    def scales(self) -> tuple[float, ...]:
        """The factors on the learning rate, however many were given."""
        return self.lr_scale if isinstance(self.lr_scale, tuple) else (self.lr_scale,)

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The patterns, however many were given."""
        return self.match if isinstance(self.match, tuple) else (self.match,)

    @property
    def label(self) -> str:
        """The patterns as a person reads them."""
        return " | ".join(map(pattern_text, self.patterns))

    @property
    def freezes_stats(self) -> bool:
        """Whether running statistics stay as they are."""
        return self.frozen if self.stats is None else self.stats == "frozen"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them; regular expressions as `{"regex": …, "flags": …}`."""
        return {
            "match": [_pattern_to_json(pattern) for pattern in self.patterns],
            "lr_scale": list(self.scales) if isinstance(self.lr_scale, tuple) else self.lr_scale,
            "weight_decay": self.weight_decay,
            "frozen": self.frozen,
            "stats": self.stats,
            "optimizer": self.optimizer,
            "decay_all": self.decay_all,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Group:
        """The group that `to_dict` described; a field that is absent has its default.

        Raises:
            PlanError: a field is not what it should be.
        """
        match = fields["match"]
        patterns = tuple(map(_pattern_from_json, match if isinstance(match, list) else [match]))
        return cls(**{**fields, "match": patterns[0] if len(patterns) == 1 else patterns})


def pattern_text(pattern: Pattern) -> str:
    """A pattern as a person reads it."""
    return pattern.pattern if isinstance(pattern, re.Pattern) else pattern


def _is_pattern(value: Any) -> bool:
    return isinstance(value.pattern if isinstance(value, re.Pattern) else value, str)


def _is_rate(value: Any) -> bool:
    try:
        return math.isfinite(value) and value >= 0
    except TypeError:
        return False


def _pattern_to_json(pattern: Pattern) -> Any:
    if isinstance(pattern, str):
        return pattern
    return {"regex": pattern.pattern, "flags": pattern.flags}


def _pattern_from_json(described: Any) -> Pattern:
    if not isinstance(described, dict):
        return described
    try:
        return re.compile(described["regex"], described.get("flags", 0))
    except re.error as error:
        raise PlanError(f"regex {described['regex']!r}: {error}; correct it") from error
