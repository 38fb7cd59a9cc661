"""Plans for the usual ways to fine-tune; each looks at a model's stages and head.

A recipe takes a `Model` and returns a `Plan`, or a sequence of plans that are carried out in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jaxtransfer.errors import PlanError
from jaxtransfer.partition.group import Group
from jaxtransfer.partition.plan import Plan
from jaxtransfer.tree import leaf_names


def probe(model: Any) -> Plan:
    """Only the head trains; the rest is frozen, statistics included, and runs as in evaluation."""
    return Plan(
        (Group(_below(model.spec.head)), Group("**", frozen=True, stats="frozen")),
        name="probe",
    )


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
    stages = _stages_with_parameters(model)
    if not 1 <= n <= len(stages):
        raise PlanError(
            f"last: expected n from 1 to {len(stages)} ({', '.join(stages)}), found {n}"
        )
    groups = [Group(tuple(map(_below, stages[len(stages) - n :])))]
    if n < len(stages):
        groups.append(Group("**", frozen=True, stats="frozen"))
    return Plan(tuple(groups), name=f"last({n})")


def layer_decay(model: Any, decay: float = 0.75) -> Plan:
    """Everything trains, each stage at `decay` times the rate of the stage above it.

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
    stages = _stages_with_parameters(model)
    groups = [
        Group(_below(stage), lr_scale=decay**depth) for depth, stage in enumerate(reversed(stages))
    ]
    return Plan(tuple(groups), name=f"layer_decay({decay:g})")


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


RECIPES: Mapping[str, Callable[[Any], Plan | tuple[Plan, ...]]] = MappingProxyType(
    {"probe": probe, "full": full, "last": last, "layer_decay": layer_decay, "lp_ft": lp_ft}
)


def resolve_plans(plan: Any, model: Any) -> tuple[Plan, ...]:
    """The plans that carry out what someone asked for: a recipe's name, a plan, or several plans.

    Raises:
        PlanError: it is none of these.
    """
    if isinstance(plan, str):
        if plan not in RECIPES:
            raise PlanError(f"plan: expected a recipe among {', '.join(RECIPES)}, found {plan!r}")
        plan = RECIPES[plan](model)
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


def _below(path: str) -> str:
    return f"{path}/**"


def _stages_with_parameters(model: Any) -> tuple[str, ...]:
    top_level = {name.split("/")[0] for name in leaf_names(model.params)}
    return tuple(stage for stage in model.spec.stages if stage in top_level)
