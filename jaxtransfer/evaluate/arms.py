"""The arms of a comparison: what each starts from, what it trains, and with which settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeAlias

from jaxtransfer.errors import ModelError
from jaxtransfer.models import Model, families, init
from jaxtransfer.partition import Plan, resolve_plans
from jaxtransfer.surgery import replace_head
from jaxtransfer.train import Settings
from jaxtransfer.tree import diff

NAIVE, SCRATCH = "naive", "scratch"
TRANSFER_ARMS = ("probe", "full", "lp_ft")
DEFAULT_ARMS = (NAIVE, SCRATCH, *TRANSFER_ARMS)

Initialise: TypeAlias = Callable[[int], Model]
"""From a seed to the same network with random weights."""

# What the budget and the search say for all arms alike.
NOT_AN_ARMS = ("steps", "batch_size", "learning_rate", "seed")


@dataclass(frozen=True)
class Arm:
    """What one arm of a comparison does.

    Attributes:
        plan: what trains: a recipe's name such as "last(2)", a `Plan`, several in order, or a
            function from the model to one of these.
        source: the model that it starts from; by default the comparison's.
        from_scratch: whether it starts from random weights instead, in the same network.
        settings: fields of `jaxtransfer.train.Settings` that differ from the comparison's, such as
            `optimizer`, `augment` or `weight_decay`; or a function from the model with its new head
            to these, for what is made for a model: `lambda start: {"regularisers": l2_sp(start)}`.
        learning_rates: a grid of its own for the search, as long as the budget's.
    """

    plan: Any = "full"
    source: Model | None = None
    from_scratch: bool = False
    settings: Mapping[str, Any] | Callable[[Model], Mapping[str, Any]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    learning_rates: tuple[float, ...] | None = None

    def kept(self, start: Model) -> dict[str, Any]:
        """The settings of its own, for the model that it starts from.

        Raises:
            ModelError: one of them is no setting, or one that all arms share.
        """
        own = dict(self.settings(start) if callable(self.settings) else self.settings)
        known = [one.name for one in fields(Settings) if one.name not in NOT_AN_ARMS]
        unknown = [name for name in own if name not in known]
        if unknown:
            raise ModelError(
                f"compare: expected settings of an arm among {', '.join(known)}, found {unknown}; "
                "steps and batch_size stand in the budget, rates in learning_rates"
            )
        return own


def as_arms(arms: Sequence[str] | Mapping[str, Any]) -> dict[str, Arm | None]:
    """Arms by name, `None` for the naive one.

    Args:
        arms: names of recipes, "naive" and "scratch"; or a dict from any names to what `Arm.plan`
            takes, an `Arm`, "scratch", or `None` or "naive" for the naive arm.

    Raises:
        ModelError: there is no arm, or a value is none of these.

    >>> as_arms(["naive", "last(2)"])
    {'naive': None, 'last(2)': Arm(plan='last(2)', source=None, from_scratch=False, \
settings=mappingproxy({}), learning_rates=None)}
    """
    named = arms if isinstance(arms, Mapping) else {name: name for name in arms}
    if isinstance(arms, str) or not named:
        raise ModelError(
            f"compare: expected arms as a list of names or a dict, found {arms!r}; write "
            'arms=("naive", "scratch", "full")'
        )
    return {str(name): _as_arm(name, value) for name, value in named.items()}


def _as_arm(name: Any, value: Any) -> Arm | None:
    if value is None or value == NAIVE:
        return None
    if isinstance(value, Arm):
        return value
    if isinstance(value, str):
        return Arm(from_scratch=True) if value == SCRATCH else Arm(value)
    if isinstance(value, (Plan, tuple, list)) or callable(value):
        return Arm(value)
    raise ModelError(
        f"compare: expected arms among {NAIVE}, {SCRATCH}, recipes, plans and Arm(…), found "
        f"{type(value).__name__} for {name!r}"
    )


def start_of_arm(
    arm: Arm,
    source: Model,
    classes: Sequence[str] | int,
    seed: int,
    initialise: Initialise | None = None,
) -> tuple[Model, tuple[Plan, ...]]:
    """The model that an arm starts from, with a head for the classes, and its plans.

    Args:
        arm: the arm.
        source: the comparison's source, for an arm without its own.
        classes: names of the classes, whose rows in the source's head are kept, or their number.
        seed: of what is new.
        initialise: as `reinitialise` says.

    Raises:
        ModelError: as `reinitialise` and `replace_head` say.
        PlanError: the plan does not fit the model.
    """
    model = arm.source or source
    if arm.from_scratch:
        model = reinitialise(model, seed, initialise)
    model = with_head(model, classes, seed, reuse=not arm.from_scratch)
    plan = arm.plan(model) if callable(arm.plan) else arm.plan
    return model, resolve_plans(plan, model)


def with_head(
    model: Model, classes: Sequence[str] | int, seed: int, *, reuse: bool = True
) -> Model:
    """A model with a head for the classes, whose known rows are kept where `reuse` says so.

    A head that cannot be replaced stays where it has the right number of outputs.

    Raises:
        ModelError: the head has another number of outputs and cannot be replaced.
    """
    names = None if isinstance(classes, int) else classes
    count = classes if isinstance(classes, int) else len(classes)
    if not isinstance(model.params, Mapping) and model.num_classes == count:
        return model
    return replace_head(
        model, count if names is None else None, classes=names, reuse=reuse, key=seed
    )


def reinitialise(model: Model, seed: int, initialise: Initialise | None = None) -> Model:
    """The same network with random weights.

    Args:
        model: the network.
        seed: the same seed gives the same weights.
        initialise: from a seed to the network with random weights, of which parameters and
            statistics are taken; a network of the catalog needs none.

    Raises:
        ModelError: the network is not in the catalog and there is no `initialise`, or what that
            gives does not fit the network.
    """
    if initialise is not None:
        fresh = initialise(seed)
        _check_same_network(model, fresh)
        return replace(model, params=fresh.params, stats=fresh.stats)
    if model.spec.name not in families():
        raise ModelError(
            "random weights: expected a network of the catalog or initialise=, found "
            f"{model.spec.name!r} without; give a function from a seed to the model with random "
            "weights, or leave scratch arms out"
        )
    fresh = init(model.spec.name, seed, **dict(model.spec.options))
    return replace(fresh, preprocess=model.preprocess)


def _check_same_network(model: Model, fresh: Any) -> None:
    if not isinstance(fresh, Model):
        raise ModelError(
            f"initialise: expected a function from a seed to a Model, found {type(fresh).__name__};"
            " write lambda seed: jt.Model.from_linen(module, module.init(jax.random.key(seed), x))"
        )
    found = diff(
        {"params": model.params, "stats": model.stats},
        {"params": fresh.params, "stats": fresh.stats},
    )
    lines = [f" - {name}: is missing" for name in found.missing]
    lines += [f" + {name}: is not in the network" for name in found.extra]
    lines += [f" ~ {name}: expected {old}, found {new}" for name, old, new in found.reshaped]
    if lines:
        raise ModelError(
            f"initialise: expected the leaves of {model.spec.name}, found\n" + "\n".join(lines)
        )
