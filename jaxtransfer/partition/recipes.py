"""Plans for the usual ways to fine-tune; each looks at a model's stages and head.

A recipe takes a `Model` and returns a `Plan`, or a sequence of plans that are carried out in turn.
Recipes that choose leaves by what they are, biases or normalisations, stand in `sparse.py`.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jaxtransfer.errors import PlanError
from jaxtransfer.partition.group import Group
from jaxtransfer.partition.plan import Plan
from jaxtransfer.partition.sparse import bias_only, norm_only
from jaxtransfer.partition.stages import SCANNED, below, scanned_blocks, stages_with_parameters
from jaxtransfer.tree import path_prefixes

FROZEN = Group("**", frozen=True, stats="frozen")
"""What is not matched before stays to the last bit, and runs as in evaluation."""


def probe(model: Any) -> Plan:
    """Only the head trains; the rest is frozen, statistics included, and runs as in evaluation."""
    return Plan((Group(below(model.spec.head)), FROZEN), name="probe")


def full(model: Any) -> Plan:
    """Everything trains, and all statistics follow the data."""
    del model  # recipes share one signature
    return Plan((Group("**"),), name="full")


def last(model: Any, n: int = 1) -> Plan:
    """The last `n` stages with parameters train, head included; what is before them is frozen.

    Args:
        model: a `Model`.
        n: from 1, the head alone, to the number of stages, everything.

    Raises:
        PlanError: `n` is out of range.
    """
    stages = stages_with_parameters(model)
    if not 1 <= n <= len(stages):
        raise PlanError(
            f"last: expected n from 1 to {len(stages)} ({', '.join(stages)}), found {n}"
        )
    return Plan(_only(stages, stages[len(stages) - n :]), name=f"last({n})")


def freeze_until(model: Any, stage: str) -> Plan:
    """The stages before `stage` are frozen, statistics included; from it on everything trains.

    Args:
        model: a `Model`.
        stage: a name in `model.spec.stages` that has parameters, or has some after it.

    Raises:
        PlanError: there is no such stage, or nothing would train.

    Example:
        `freeze_until(model, "layer3")`
    """
    stages, known = stages_with_parameters(model), model.spec.stages
    after = known[known.index(stage) :] if stage in known else ()
    trained = [stage for stage in stages if stage in after]
    if not trained:
        raise PlanError(f"freeze_until: expected {_one_of(model, known)}, found {stage!r}")
    return Plan(_only(stages, trained), name=f"freeze_until({stage})")


def layer_decay(model: Any, decay: float = 0.75) -> Plan:
    """Everything trains, each stage at `decay` times the rate of the stage above it.

    The blocks of a scanned stage count one by one.

    Args:
        model: a `Model`.
        decay: above 0, at most 1.

    Source: Clark et al. 2020, "ELECTRA" (arXiv 2003.10555), appendix B; Bao et al. 2022, "BEiT"
    (arXiv 2106.08254) use it for images; the default is that of He et al. 2022, "MAE" (arXiv
    2111.06377), table 9.

    Raises:
        PlanError: `decay` is out of range.
    """
    if not 0 < decay <= 1:
        raise PlanError(f"layer_decay: expected a decay above 0 and at most 1, found {decay}")
    groups = _by_depth(model, lambda depth, depths: decay ** (depths - 1 - depth))
    return Plan(groups[::-1], name=f"layer_decay({decay:g})")


def discriminative(model: Any, lo: float = 0.01, hi: float = 1.0) -> Plan:
    """Everything trains, at rates that grow by equal factors from the first stage to the last.

    The blocks of a scanned stage count one by one.

    Args:
        model: a `Model`.
        lo: factor on the learning rate of the first stage, above 0.
        hi: factor on the learning rate of the last stage, the head, above 0.

    Source: Howard & Ruder 2018, "ULMFiT" (arXiv 1801.06146), section 3.2, discriminative
    fine-tuning; there the factor is 2.6 a layer. By default the ends are as far apart as in
    `fine_tune` of https://github.com/fastai/fastai (`lr_mult`).

    Raises:
        PlanError: `lo` or `hi` is out of range.
    """
    if not (0 < lo < float("inf") and 0 < hi < float("inf")):
        raise PlanError(f"discriminative: expected numbers above 0, found lo {lo} and hi {hi}")

    def factor(depth: int, depths: int) -> float:
        share = depth / (depths - 1) if depths > 1 else 1.0
        return float(lo ** (1 - share) * hi**share)

    return Plan(_by_depth(model, factor)[::-1], name=f"discriminative({lo:g}, {hi:g})")


def surgical(model: Any, stage: str, *, train_head: bool = False) -> Plan:
    """One stage trains; all others are frozen, statistics included.

    For a shift of the inputs that is an early stage, for one of the labels a late one.

    Args:
        model: a `Model`.
        stage: a name in `model.spec.stages` that has parameters; the head is one too.
        train_head: whether the head trains beside it. In the source it does not, since there the
            labels stay those that it was trained for; a new head has to.

    Source: Lee et al. 2023, "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts"
    (arXiv 2210.11466), section 2.

    Raises:
        PlanError: there is no such stage.

    Example:
        `surgical(model, "layer1")`
    """
    stages = stages_with_parameters(model)
    if stage not in stages:
        raise PlanError(f"surgical: expected {_one_of(model, stages)}, found {stage!r}")
    head = model.spec.head
    trained = [stage, head] if train_head and stage not in path_prefixes(head) else [stage]
    return Plan(_only(stages, trained), name=f"surgical({stage})")


def lp_ft(model: Any, head_share: float = 0.25, lr_scale: float = 0.1) -> tuple[Plan, Plan]:
    """The head first, then everything: linear probing, then fine-tuning.

    Args:
        model: a `Model`.
        head_share: share of the steps in which the head trains alone, above 0 and below 1.
        lr_scale: factor on the learning rate of the second part.

    Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution" (arXiv 2202.10054), section 4.

    Raises:
        PlanError: `head_share` is out of range.
    """
    if not 0 < head_share < 1:
        raise PlanError(f"lp_ft: expected a head_share above 0 and below 1, found {head_share}")
    return (
        Plan(probe(model).groups, name="lp_ft: head", share=head_share),
        Plan((Group("**", lr_scale=lr_scale),), name="lp_ft: all", share=1 - head_share),
    )


def gradual(model: Any, phases: int = 4, patience: int | None = None) -> tuple[Plan, ...]:
    """The head first, then more and more stages from there down, in the end everything.

    Args:
        model: a `Model`.
        phases: how many plans there are, from 1; each begins with about as many more stages, and
            gets the same share of the steps. There are no more than stages with parameters.
        patience: a phase ends early when the metric that the run watches has not improved for so
            many evaluations; `None` for phases that take all their steps.

    Source: Howard & Ruder 2018, "ULMFiT" (arXiv 1801.06146), section 3.3, where each stage is a
    phase of one epoch.

    Raises:
        PlanError: `phases` or `patience` is not at least 1.
    """
    if phases < 1:
        raise PlanError(f"gradual: expected at least 1 phase, found {phases}")
    stages = stages_with_parameters(model)
    count = min(phases, len(stages))
    plans = []
    for phase in range(count):
        more = round((len(stages) - 1) * phase / (count - 1)) if count > 1 else len(stages) - 1
        trained = stages[len(stages) - 1 - more :]
        plans.append(
            Plan(
                _only(stages, trained),
                name=f"gradual {phase + 1} of {count}: {'from ' * (more > 0)}{trained[0]}",
                patience=patience,
            )
        )
    return tuple(plans)


RECIPES: Mapping[str, Callable[[Any], Plan | tuple[Plan, ...]]] = MappingProxyType(
    {
        "probe": probe,
        "full": full,
        "last": last,
        "layer_decay": layer_decay,
        "discriminative": discriminative,
        "bias_only": bias_only,
        "norm_only": norm_only,
        "lp_ft": lp_ft,
        "gradual": gradual,
    }
)
"""By name, the recipes that need a model and nothing else."""

WITH_STAGE = MappingProxyType({"freeze_until": freeze_until, "surgical": surgical})
"""By name, the recipes that need a stage, too."""

_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>[^()]*)\)")


def resolve_plans(plan: Any, model: Any) -> tuple[Plan, ...]:
    """The plans that carry out what someone asked for: a recipe's name, a plan, or several plans.

    A recipe's name may have arguments, as in `last(2)`, `layer_decay(0.65)` or
    `freeze_until(layer3)`.

    Raises:
        PlanError: it is none of these.
    """
    if isinstance(plan, str):
        plan = _from_text(plan, model)
    plans = (plan,) if isinstance(plan, Plan) else plan
    if (
        not isinstance(plans, (tuple, list))
        or not plans
        or not all(isinstance(p, Plan) for p in plans)
    ):
        raise PlanError(
            "plan: expected a recipe's name, a Plan or a sequence of plans, "
            f"found {type(plan).__name__}"
        )
    return tuple(plans)


def _from_text(text: str, model: Any) -> Any:
    """What a recipe gives that is named with arguments or without."""
    call = _CALL.fullmatch(text)
    if call is None and text in RECIPES:
        return RECIPES[text](model)
    recipe = None if call is None else {**RECIPES, **WITH_STAGE}.get(call["name"])
    if call is None or recipe is None:
        raise PlanError(
            f"plan: expected a recipe among {', '.join(RECIPES)}, or one with arguments such as "
            f"last(2) or freeze_until(STAGE), found {text!r}"
        )
    values = [_value(part.strip()) for part in call["arguments"].split(",") if part.strip()]
    try:
        return recipe(model, *values)
    except TypeError as error:
        _, *others = inspect.signature(recipe).parameters.values()
        taken = ", ".join(str(one.replace(annotation=one.empty)) for one in others)
        raise PlanError(f"plan: expected {call['name']}({taken}), found {text!r}") from error


def _value(text: str) -> Any:
    """A number, or else the text, which names a stage."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text.strip("'\"")


def _only(stages: tuple[str, ...], trained: Any) -> tuple[Group, ...]:
    """The groups of a plan in which these paths train, and nothing else."""
    if set(stages) <= set(trained):
        return (Group("**"),)
    return Group(tuple(map(below, trained))), FROZEN


def _one_of(model: Any, stages: tuple[str, ...]) -> str:
    text = f"a stage among {', '.join(stages)}"
    return f"{text} (unstack(model) has a stage for each block)" if SCANNED in stages else text


def _by_depth(model: Any, factor: Callable[[int, int], float]) -> tuple[Group, ...]:
    """A group for each stage, with factors by depth, which `factor` gets with their number."""
    stages = stages_with_parameters(model)
    blocks = {stage: scanned_blocks(model, stage) for stage in stages}
    depths = sum(count or 1 for count in blocks.values())
    groups, depth = [], 0
    for stage, count in blocks.items():
        scales = tuple(factor(depth + block, depths) for block in range(count or 1))
        groups.append(Group(below(stage), lr_scale=scales if count else scales[0]))
        depth += count or 1
    return tuple(groups)
