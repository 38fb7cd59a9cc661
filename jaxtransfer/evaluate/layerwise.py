"""What the transfer of a network's first stages gave: accuracies, effects and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxtransfer.evaluate.metrics import Interval, mean_interval

BASE = "baseB"


@dataclass(frozen=True)
class Treatment:
    """Where the first stages come from, and whether they train.

    Attributes:
        from_source: whether they were trained on task A, else on task B.
        fine_tuned: whether they train on task B, else they are frozen.
    """

    from_source: bool
    fine_tuned: bool

    def name(self, depth: int | str = "n") -> str:
        """As the paper writes it.

        >>> Treatment(from_source=True, fine_tuned=True).name(3)
        'A3B+'
        """
        return f"{'A' if self.from_source else 'B'}{depth}B{'+' if self.fine_tuned else ''}"


TREATMENTS: Mapping[str, Treatment] = MappingProxyType(
    {
        treatment.name(): treatment
        for treatment in (
            Treatment(from_source=False, fine_tuned=False),
            Treatment(from_source=False, fine_tuned=True),
            Treatment(from_source=True, fine_tuned=False),
            Treatment(from_source=True, fine_tuned=True),
        )
    }
)


@dataclass(frozen=True)
class Effect:
    """What the difference of two kinds of networks tells, after section 2 of the paper.

    Attributes:
        meaning: of a difference on the side of `sign`.
        of: what is compared.
        to: what it is compared with.
        sign: 1 where the effect is a gain in accuracy, -1 where it is a loss.
    """

    meaning: str
    of: str
    to: str
    sign: int


EFFECTS: Mapping[str, Effect] = MappingProxyType(
    {
        "co_adaptation": Effect("fragile co-adaptation", "BnB", BASE, -1),
        "specificity": Effect("representation specificity", "AnB", "BnB", -1),
        "recovery": Effect("recovery by fine-tuning", "BnB+", "BnB", 1),
        "generalisation": Effect("better generalisation by transfer", "AnB+", BASE, 1),
    }
)


@dataclass(frozen=True)
class Transferability:
    """The outcome of `transferability_by_layer`; accuracies are on task B, in [0, 1].

    Attributes:
        network: its name.
        stages: those with parameters, from input to head; n copies the first n of them.
        depths: the numbers n of stages that were copied.
        seeds: one network of each kind for each.
        base: the accuracy of baseB for each seed; of one model that was given, for each the same.
        accuracies: by treatment, "BnB", "BnB+", "AnB" and "AnB+", a row for each depth with the
            accuracy for each seed.
        classes: for each seed the names of the classes of A and B, `None` where there are none.
        settings: how each network was trained.
        environment: versions and machine.
    """

    network: str
    stages: tuple[str, ...]
    depths: tuple[int, ...]
    seeds: tuple[int, ...]
    base: tuple[float, ...]
    accuracies: Mapping[str, tuple[tuple[float, ...], ...]]
    classes: tuple[Mapping[str, tuple[str, ...] | None], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def intervals(self, name: str) -> tuple[Interval, ...]:
        """Mean accuracy and 95 % interval over the seeds at each depth, of a treatment or baseB."""
        return tuple(mean_interval(row) for row in self._rows(name))

    def effect(self, name: str) -> tuple[Interval, ...]:
        """The mean difference of one of `EFFECTS` at each depth, paired by seed, and its interval.

        The difference is that of accuracies, whatever the sign of the effect.
        """
        effect = EFFECTS[name]
        pairs = zip(self._rows(effect.of), self._rows(effect.to), strict=True)
        return tuple(mean_interval(np.subtract(a, b).tolist()) for a, b in pairs)

    def largest(self, name: str) -> tuple[int, Interval]:
        """The depth at which one of `EFFECTS` is largest, of equals the lowest, and its difference.

        One that goes the other way at all depths is where it does so least.
        """
        found, sign = self.effect(name), EFFECTS[name].sign
        best = int(np.argmax([sign * one.mean for one in found]))
        return self.depths[best], found[best]

    def is_seen(self, name: str) -> bool:
        """Whether the largest of an effect goes its way by more than its interval.

        Of one seed, which has none, whether it goes its way at all.
        """
        (_, found), sign = self.largest(name), EFFECTS[name].sign
        bounds = [sign * bound for bound in found if not np.isnan(bound)]
        return min(bounds) > 0

    def readings(self) -> tuple[str, ...]:
        """A sentence on each of `EFFECTS`: how large it is at most, and whether that is sure.

        The interval is that of one depth. It says less where it was the best one of many.
        """
        return tuple(self._reading(name) for name in EFFECTS)

    def table(self) -> str:
        """Mean accuracies in percent with half the width of their 95 % intervals, as Markdown."""
        header = ("n", "copied up to", *TREATMENTS)
        lines = [_row(header), _row("---" for _ in header)]
        base = _percent(mean_interval(self.base))
        lines.append(_row(("0", BASE, base, *("" for _ in header[3:]))))
        columns = [self.intervals(name) for name in TREATMENTS]
        for depth, *cells in zip(self.depths, *columns, strict=True):
            lines.append(_row((str(depth), self.stages[depth - 1], *map(_percent, cells))))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it; bounds that one seed cannot give are `None`."""
        return {
            "network": self.network,
            "stages": list(self.stages),
            "depths": list(self.depths),
            "seeds": list(self.seeds),
            "base": {"accuracies": list(self.base), **mean_interval(self.base).to_dict()},
            "treatments": {
                name: [
                    {"depth": depth, "accuracies": list(row), **mean_interval(row).to_dict()}
                    for depth, row in zip(self.depths, self.accuracies[name], strict=True)
                ]
                for name in TREATMENTS
            },
            "effects": {
                name: [
                    {"depth": depth, **one.to_dict()}
                    for depth, one in zip(self.depths, self.effect(name), strict=True)
                ]
                for name in EFFECTS
            },
            "readings": list(self.readings()),
            "classes": [
                {task: None if names is None else list(names) for task, names in pair.items()}
                for pair in self.classes
            ],
            "settings": dict(self.settings),
            "environment": dict(self.environment),
        }

    def _rows(self, name: str) -> tuple[tuple[float, ...], ...]:
        return (self.base,) * len(self.depths) if name == BASE else self.accuracies[name]

    def _reading(self, name: str) -> str:
        effect = EFFECTS[name]
        depth, found = self.largest(name)
        points = (
            f"{TREATMENTS[effect.of].name(depth)} is {abs(100 * found.mean):.1f} points "
            f"{'above' if found.mean >= 0 else 'below'} "
            f"{TREATMENTS[effect.to].name(depth) if effect.to in TREATMENTS else effect.to}"
        )
        seen = "" if self.is_seen(name) else ": not seen"
        sure = "one seed"
        if not np.isnan(found.low):
            sure = f"95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}"
        return f"{effect.meaning[0].upper()}{effect.meaning[1:]}{seen}: {points} ({sure})"


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(interval: Interval) -> str:
    half = 100 * (interval.high - interval.low) / 2
    mean = f"{100 * interval.mean:.1f}"
    return mean if np.isnan(half) else f"{mean} ± {half:.1f}"
