"""The three conditions for a transfer, each checked on evidence.

Source and target should have the same input, there should be far more data for the source than for
the target, and the low-level features of the source should help with the target. The thresholds
are named below, each with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxtransfer.evaluate.folds import Fold, paired_interval

SAME_INPUT = "same input"
MORE_DATA = "far more source data"
HELPFUL = "helpful features"

# The embedded source works on digits that are enlarged twice; enlarged more than four times, an
# image has less detail than the first filters of a network look for.
MOST_ENLARGED = 4.0
# Something as large as an eighth of the image's side then covers an eighth of the input, however
# it is reduced; what covered eight pixels covers less than one, and is gone.
MOST_REDUCED = 1 / 8
# As shares of the range from black to white. The pixels of ImageNet have a deviation of about 0.25
# around their mean; images whose mean is farther off than that are of another kind.
MOST_BRIGHTNESS = 0.25
# Below this, images are all but flat: 8-bit images with a deviation of five levels.
LEAST_CONTRAST = 0.02

LEAST_AVOIDED = 0.25
"""Share of the errors of a probe on random weights that features must avoid to be helpful: networks
with random weights differ among themselves by nearly as much (on the embedded digits the best of
eight avoids a fifth of the errors of the second), and a lesser gain is not worth a dependence on
someone else's weights."""

FAR_MORE = 10
"""So many times more images the source must have: "a lot more" would else be a matter of taste."""


@dataclass(frozen=True)
class Check:
    """One condition and its evidence.

    Attributes:
        name: of the condition.
        met: whether it holds; `None` where nobody can tell.
        evidence: a sentence.
        numbers: those behind it, by name; `None` for what is not known.
    """

    name: str
    met: bool | None
    evidence: str
    numbers: Mapping[str, float | None]


@dataclass(frozen=True)
class ImageFacts:
    """What target images are like before any preprocessing.

    Attributes:
        sizes: (height, width) of each image that was looked at; empty where inputs are no images.
        channels: their number, the most frequent one.
        low, high: the smallest and the largest value, as shares of the range from black to white.
        brightness: the mean, as such a share.
        contrast: the deviation of the pixels around it, as such a share.
    """

    sizes: tuple[tuple[int, int], ...]
    channels: int
    low: float
    high: float
    brightness: float
    contrast: float


@dataclass(frozen=True)
class Probes:
    """Which examples linear probes answer correctly when they are held out.

    Attributes:
        stages: by stage, in the network's order, for probes on what enters it; the head's is the
            last. Shape (count,), booleans.
        random: for each network with random weights the same.
        majority: for the naive answer, the most frequent class of the training part.
        folds: training and held-out positions, the same for all.
    """

    stages: Mapping[str, np.ndarray]
    random: Sequence[Mapping[str, np.ndarray]]
    majority: np.ndarray
    folds: Sequence[Fold]

    @property
    def best_stage(self) -> str:
        """The stage with the highest accuracy; of equal ones the last."""
        return _best(self.stages)

    @property
    def best_random(self) -> np.ndarray | None:
        """What the best of the networks with random weights answers correctly at its best stage."""
        each = [one[_best(one)] for one in self.random]
        return max(each, key=np.mean) if each else None


def check_input(
    facts: ImageFacts,
    size: tuple[int, int] | None,
    channels: int | None,
    brightness: float | None,
) -> Check:
    """Whether the target's images are what the network expects.

    Args:
        facts: what the images are like.
        size: (height, width) that the network gets, as cut out of the resized image by a crop.
        channels: that the network gets.
        brightness: the mean of the images that the network was trained on, as a share of the range
            from black to white; `None` where nobody knows.
    """
    factor = None
    if size is not None and facts.sizes:
        factor = float(np.median([max(size[0] / h, size[1] / w) for h, w in facts.sizes]))
    parts = [
        _size_part(facts, size, factor),
        _channels_part(facts, channels),
        _values_part(facts, brightness),
    ]
    problems = [problem for _, found in parts for problem in found]
    evidence = f"{_capital('; '.join(said for said, _ in parts if said))}."
    if problems:
        evidence += f" {_capital('; '.join(problems))}."
    numbers = {
        "resize_factor": factor,
        "channels": float(facts.channels),
        "low": facts.low,
        "high": facts.high,
        "brightness": facts.brightness,
        "expected_brightness": brightness,
        "contrast": facts.contrast,
    }
    return Check(SAME_INPUT, not problems, evidence, numbers)


# Each says what is so, and which problems there are.
def _size_part(
    facts: ImageFacts, size: tuple[int, int] | None, factor: float | None
) -> tuple[str, list[str]]:
    if size is None or factor is None:
        return "", []
    height, width = (int(np.median(sides)) for sides in zip(*facts.sizes, strict=True))
    how = "are enlarged" if factor > 1 else "are reduced" if factor < 1 else "keep their size,"
    said = f"images of {height}x{width} {how} {_times(factor)} for {size[0]}x{size[1]}"
    if factor > MOST_ENLARGED:
        return said, [f"they have less detail than the network looks for ({factor:.1f}x)"]
    return said, [f"small things in them vanish ({factor:.2f}x)"] if factor < MOST_REDUCED else []


def _channels_part(facts: ImageFacts, channels: int | None) -> tuple[str, list[str]]:
    if channels is None:
        return "", []
    said = f"channels: {facts.channels} for {channels}"
    if channels == facts.channels:
        return said, []
    lost = facts.channels > channels
    return said, ["their colours are lost" if lost else "they have no colours"]


def _values_part(facts: ImageFacts, brightness: float | None) -> tuple[str, list[str]]:
    said = f"values from {facts.low:.2f} to {facts.high:.2f} with a mean of {facts.brightness:.2f}"
    problems = []
    if brightness is not None:
        said += f", for {brightness:.2f}"
        if abs(facts.brightness - brightness) > MOST_BRIGHTNESS:
            problems.append("they are much darker or brighter than the source's")
    if facts.contrast < LEAST_CONTRAST:
        problems.append("they are all but flat")
    return said, problems


def check_amount(source_examples: int | None, examples: int, where: str = "") -> Check:
    """Whether there is far more data for the source than for the target.

    Args:
        source_examples: images that the source was trained on, `None` where nobody knows.
        examples: labelled images of the target.
        where: what they are called, such as "ImageNet-1k".
    """
    numbers = {"source_examples": source_examples, "examples": examples}
    if source_examples is None:
        evidence = (
            f"How many images the source was trained on is not known, the target has {examples:,}; "
            "give source_examples."
        )
        return Check(MORE_DATA, None, evidence, numbers)
    met = source_examples >= FAR_MORE * examples
    of = f" ({where})" if where else ""
    evidence = f"{source_examples:,} images for the source{of}, {examples:,} for the target."
    return Check(MORE_DATA, met, evidence, numbers)


def check_features(probes: Probes) -> Check:
    """Whether the source's features tell the target's classes apart better than others do.

    A linear probe on them must beat the majority answer, and the best of the networks with random
    weights, beyond the 95 % interval over the examples; and it must avoid at least `LEAST_AVOIDED`
    of the errors that a probe on the latter makes. Where it does, but the interval holds 0, the
    images are too few to tell. Each network is taken at its best stage.
    """
    best, random = probes.stages[probes.best_stage], probes.best_random
    over_majority = paired_interval(best, probes.majority)
    numbers: dict[str, float | None] = {
        "probe": float(best.mean()),
        "majority": float(probes.majority.mean()),
        "over_majority_low": over_majority.low,
        "over_majority_high": over_majority.high,
        "random": None,
        "over_random_low": None,
        "over_random_high": None,
        "errors_avoided": None,
    }
    evidence = (
        f"A linear probe on what enters {probes.best_stage} answers {_percent(best)} correctly, "
        f"the majority answer {_percent(probes.majority)}"
    )
    if random is None:
        evidence += "; random weights were not compared."
        return Check(HELPFUL, None if over_majority.low > 0 else False, evidence, numbers)
    over_random, avoided = paired_interval(best, random), _errors_avoided(best, random)
    numbers |= {
        "random": float(random.mean()),
        "over_random_low": over_random.low,
        "over_random_high": over_random.high,
        "errors_avoided": avoided,
    }
    difference = " to ".join(f"{100 * value:+.1f}" for value in over_random[1:])
    evidence += (
        f", and one on {_random_networks(len(probes.random))} {_percent(random)}: "
        f"{100 * over_random.mean:+.1f} points, 95 % interval {difference}."
    )
    if over_majority.low <= 0 or avoided < LEAST_AVOIDED:
        return Check(HELPFUL, False, evidence, numbers)
    return Check(HELPFUL, True if over_random.low > 0 else None, evidence, numbers)


def _random_networks(count: int) -> str:
    one = "a network with random weights"
    return one if count == 1 else f"the best of {count} networks with random weights"


def _errors_avoided(correct: np.ndarray, baseline: np.ndarray) -> float:
    """The share of a baseline's errors that are no more; 0 where it makes none."""
    errors = 1 - float(baseline.mean())
    return float(correct.mean() - baseline.mean()) / errors if errors else 0.0


def better_stage(probes: Probes) -> str | None:
    """The best stage before the head's, where it is better than it beyond doubt; else `None`.

    The interval of the difference is that of 95 % for all stages together (Bonferroni), since the
    best of many is compared.
    """
    *earlier, last = probes.stages
    if not earlier:
        return None
    best = _best({stage: probes.stages[stage] for stage in earlier})
    gain = paired_interval(probes.stages[best], probes.stages[last], 1 - 0.05 / len(earlier))
    return best if gain.low > 0 else None


def _best(stages: Mapping[str, np.ndarray]) -> str:
    return max(reversed(list(stages)), key=lambda stage: np.mean(stages[stage]))


def _percent(correct: np.ndarray) -> str:
    return f"{100 * correct.mean():.1f} %"


def _times(factor: float) -> str:
    return "1x" if factor == 1 else f"{factor:.1f}x" if factor > 1 else f"to {factor:.2f}x"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
