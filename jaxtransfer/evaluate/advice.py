"""Should one transfer, and how? Three conditions, checked on evidence, and what follows from them.

Transfer from a source to a target makes sense where both have the same input, there is far more
data for the source than for the target, and the low-level features of the source help with the
target. What to train then is told by how much data there is and how like the source's it is: the
four cases of "Transfer Learning" in the notes of Stanford's CS231n,
https://cs231n.github.io/transfer-learning/.

Those notes give no numbers; the thresholds are named, each with its reason, here and in
`jaxtransfer.evaluate.conditions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jaxtransfer.evaluate.conditions import (
    MORE_DATA,
    SAME_INPUT,
    Check,
    Probes,
    better_stage,
)
from jaxtransfer.evaluate.folds import fold_interval, fold_means
from jaxtransfer.evaluate.metrics import Interval

LARGE = 1000
"""Labelled images from which a target is large: VTAB (Zhai et al. 2019, arXiv 1910.04867) takes
1,000 for tasks with few labels, all classes together."""

SMALL_SIMILAR = "small and similar"
SMALL_DIFFERENT = "small and different"
LARGE_SIMILAR = "large and similar"
LARGE_DIFFERENT = "large and different"
UNHELPFUL = "features do not help"

SCRATCH = "scratch"

CASES: Mapping[str, tuple[str, float, str]] = MappingProxyType(
    {
        SMALL_SIMILAR: (
            "probe",
            1e-2,
            "Train a linear classifier on the frozen network; fine-tuning everything could overfit",
        ),
        LARGE_SIMILAR: (
            "lp_ft",
            3e-3,
            "There is enough data to fine-tune the whole network: the head first, then everything "
            "at a tenth of the rate",
        ),
        SMALL_DIFFERENT: (
            "probe",
            1e-2,
            "Train a linear classifier on the frozen features of an earlier stage; the last ones "
            "are too close to the source's own classes",
        ),
        LARGE_DIFFERENT: (
            "full",
            1e-3,
            "Train everything, with the source's weights as the start; the last stages have most "
            "to learn anew",
        ),
        UNHELPFUL: (
            SCRATCH,
            3e-3,
            "Do not transfer from this source: train from scratch, or find one that is nearer to "
            "the target",
        ),
    }
)
"""For each case the recipe, a learning rate for AdamW to start a search at, and what to do.

The learning rates are the middle ones of those that `compare` and the benchmark of ants and bees
choose from; `find_lr` finds one for the data at hand.
"""


@dataclass(frozen=True)
class Advice:
    """Whether to transfer, how, and why.

    Attributes:
        source, target: what would be transferred from and to.
        examples, classes: labelled target images, and their classes.
        checks: the three conditions.
        case: which of CS231n's four cases this is, or that features do not help.
        plan: the recipe, "probe", "lp_ft" or "full"; "scratch" for `full` on random weights.
        learning_rate: the highest one, for AdamW; where a search may begin.
        stage: what enters this stage is to be classified: the network is to be cut off before it;
            `None` for the whole network.
        reasons: sentences, the recommendation first.
        accuracies: cross-validated accuracies of linear probes with 95 % intervals over the folds:
            for each stage of the source, and "random weights" and "majority answer".
    """

    source: str
    target: str
    examples: int
    classes: int
    checks: tuple[Check, ...]
    case: str
    plan: str
    learning_rate: float
    stage: str | None
    reasons: tuple[str, ...]
    accuracies: Mapping[str, Interval]

    @property
    def transfer(self) -> bool:
        """Whether to transfer at all."""
        return self.plan != SCRATCH

    def to_dict(self) -> dict[str, Any]:
        """The advice as JSON can hold it."""
        plain = ("source", "target", "examples", "classes", "case", "plan", "learning_rate")
        return {
            **{name: getattr(self, name) for name in plain},
            "transfer": self.transfer,
            "stage": self.stage,
            "checks": [
                {
                    "name": check.name,
                    "met": check.met,
                    "evidence": check.evidence,
                    "numbers": dict(check.numbers),
                }
                for check in self.checks
            ],
            "reasons": list(self.reasons),
            "accuracies": {name: value.to_dict() for name, value in self.accuracies.items()},
        }

    def __str__(self) -> str:
        words = {True: "yes", False: "no", None: "unknown"}
        conditions = [f"  {c.name}: {words[c.met]}. {c.evidence}" for c in self.checks]
        return "\n".join(
            [f"{self.source} to {self.target}: {self.reasons[0]}", *conditions, *self.reasons[1:]]
        )


def advice_from(
    source: str,
    target: str,
    classes: int,
    checks: tuple[Check, Check, Check],
    probes: Probes,
    examples: int,
) -> Advice:
    """What the three conditions and the probes say should be done.

    The third condition decides whether to transfer, since it is measured on the target itself, and
    the others are told as cautions; where the images are too few to tell, both others must be met.
    """
    proven = checks[2].met
    helpful = proven or (proven is None and all(check.met for check in checks[:2]))
    stage = better_stage(probes) if helpful else None
    large, different = examples >= LARGE, stage is not None
    case = UNHELPFUL
    if helpful:
        case = {
            (False, False): SMALL_SIMILAR,
            (False, True): SMALL_DIFFERENT,
            (True, False): LARGE_SIMILAR,
            (True, True): LARGE_DIFFERENT,
        }[large, different]
    plan, learning_rate, what = CASES[case]
    reasons = [f"{what}."]
    if helpful:
        reasons.append(_why(case, examples, stage, probes))
        reasons.append(f"Plan {plan!r}, learning rate {learning_rate:g}; find_lr can refine it.")
        if not proven:
            reasons.append(
                f"{_unproven(checks[2])}; that they do is likely, since the other two conditions "
                "are met. compare measures it."
            )
    elif proven is None:
        remedy = "label more" if _is_compared(checks[2]) else "give random_networks"
        reasons.append(f"{_unproven(checks[2])}; {remedy}.")
    elif (checks[2].numbers["over_majority_low"] or 0) <= 0:
        reasons.append(
            "No probe beats the majority answer beyond doubt: look at images and labels first, "
            "since training from scratch will hardly do better."
        )
    cautions = {
        SAME_INPUT: "The images are not what the network was made for; compare before you trust.",
        MORE_DATA: "The source has little more data than the target, so scratch is a rival.",
    }
    if helpful:
        reasons += [cautions[check.name] for check in checks[:2] if check.met is False]
    return Advice(
        source=source,
        target=target,
        examples=examples,
        classes=classes,
        checks=checks,
        case=case,
        plan=plan,
        learning_rate=learning_rate,
        # The whole network trains where there is much data.
        stage=stage if case == SMALL_DIFFERENT else None,
        reasons=tuple(reasons),
        accuracies=_accuracies(probes),
    )


def _is_compared(check: Check) -> bool:
    """Whether the features were compared with those of random weights."""
    return check.numbers["random"] is not None


def _unproven(check: Check) -> str:
    if _is_compared(check):
        return "These images are too few to prove that the features help"
    return "Without random weights to compare with, it is not proven that the features help"


def _why(case: str, examples: int, stage: str | None, probes: Probes) -> str:
    last = list(probes.stages)[-1]
    amount = f"{examples:,} labelled images are {'few' if examples < LARGE else 'many'}"
    why = f"Case {case!r} of CS231n: {amount} (from {LARGE:,} on they are many), and "
    if stage is None:
        return f"{why}no earlier stage is better than what enters {last} beyond doubt."
    gain = float(probes.stages[stage].mean() - probes.stages[last].mean())
    return f"{why}a probe on what enters {stage} is {100 * gain:.1f} points better than on {last}."


def _accuracies(probes: Probes) -> dict[str, Interval]:
    rows = dict(probes.stages)
    if probes.best_random is not None:
        rows["random weights"] = probes.best_random
    rows["majority answer"] = probes.majority
    return {name: fold_interval(fold_means(row, probes.folds)) for name, row in rows.items()}
