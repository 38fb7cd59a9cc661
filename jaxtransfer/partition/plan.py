"""What trains, and how fast: an ordered table of groups in which the first match wins."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.core import Tracer

from jaxtransfer.errors import PlanError
from jaxtransfer.partition.group import Group, pattern_text
from jaxtransfer.partition.optimizer import Settings, block_problems, build_optimizer
from jaxtransfer.partition.optimizers import (
    DEFAULT_OPTIMIZER,
    OPTIMIZERS,
    Optimizer,
    Transformation,
    as_optimizer,
)
from jaxtransfer.partition.table import HEADER, row
from jaxtransfer.tree import (
    count_bytes,
    count_parameters,
    is_below,
    leaf_names,
    matches,
    nearest,
    path_prefixes,
    split,
)
from jaxtransfer.tree.summary import format_bytes, format_table
from jaxtransfer.types import Pattern, PyTree


@dataclass(frozen=True)
class Plan:
    """What trains, in one table.

    Every leaf belongs to the first group that matches its name. A leaf without a group and a group
    without a leaf are errors. A plan chooses the leaves that train, so `jt.split(params, plan)`
    gives the trainable and the frozen half.

    Attributes:
        groups: the rows, in order.
        name: what the plan is called in tables and reports.
        share: in a sequence of plans, this plan's share of the steps relative to the others'.
        patience: in a sequence of plans, this one ends early when the metric that the run watches
            has not improved for so many evaluations; `None` for a plan that takes all its steps.

    Raises:
        PlanError: there is no group, the share is not above 0, or the patience is not at least 1.

    >>> print(Plan((Group("head/**"), Group("**", frozen=True)), name="mine"))
    plan mine
    match    rate    decay    optimizer  statistics
    -------  ------  -------  ---------  ----------
    head/**  1x      default  default    update
    **       frozen  -        -          frozen
    """

    groups: tuple[Group, ...]
    name: str = "plan"
    share: float = 1.0
    patience: int | None = None

    def __post_init__(self) -> None:
        groups = self.groups
        if not isinstance(groups, (tuple, list)) or not all(isinstance(g, Group) for g in groups):
            raise PlanError(
                f"plan {self.name!r}: expected several groups, found {groups!r}; write "
                "Plan((Group('head/**'), Group('**', frozen=True)))"
            )
        object.__setattr__(self, "groups", tuple(groups))
        waits = self.patience is None or (
            isinstance(self.patience, int)
            and not isinstance(self.patience, bool)
            and self.patience > 0
        )
        if not groups or not (math.isfinite(self.share) and self.share > 0) or not waits:
            raise PlanError(
                f"plan {self.name!r}: expected at least one group, a share above 0 and a patience "
                f"of at least 1 evaluation or None, found {len(groups)} groups, share "
                f"{self.share}, patience {self.patience!r}"
            )

    def __str__(self) -> str:
        """The groups as a table; `describe` adds what they mean for a model."""
        return f"{self._title}\n{format_table(HEADER, [row(group) for group in self.groups])}"

    @property
    def _title(self) -> str:
        more = "" if self.share == 1.0 else f", share {self.share:.3g}"
        if self.patience is not None:
            more += f", patience {self.patience}"
        return f"plan {self.name}{more}"

    def assign(self, names: Sequence[str]) -> tuple[int, ...]:
        """For each name of a parameter, the position of its group.

        Raises:
            PlanError: a name without a group, or a group without a name; the message lists all.
        """
        return _assign(self, tuple(names))

    def chooses(self, names: Sequence[str]) -> tuple[bool, ...]:
        """For each name of a parameter, whether it trains."""
        return tuple(not self.groups[group].frozen for group in self.assign(names))

    def check(self, params: PyTree, stats: PyTree) -> None:
        """Raise unless the plan fits a network's parameters and statistics.

        Raises:
            PlanError: a leaf without a group, a group without a parameter, or a pattern that
                matches nothing; the message lists all of them.
        """
        names, stat_names = leaf_names(params), leaf_names(stats)
        problems = _problems(self, names)
        for group in self.groups:
            if _matches_any(group.patterns, names):  # else the group itself is a problem already
                problems += [
                    f" - group {group.label!r}: {_no_match(pattern_text(pattern), names)}"
                    for pattern in group.patterns
                    if not _matches_any((pattern,), (*names, *stat_names))
                ]
        first = _first_matches(self, names)
        found = zip(names, first, strict=True)
        scales = {name: self.groups[group].lr_scale for name, group in found if group >= 0}
        problems += block_problems(scales, params)
        positions = _stat_positions(self, names, first, stat_names)
        problems += [_stat_problem(name) for name, found in positions.items() if found < 0]
        _raise(self, names, problems)

    def assign_stats(self, params: PyTree, stats: PyTree) -> dict[str, Group]:
        """The group of each running statistic, by name.

        A statistic belongs to the first group that matches its own name, or else to the group of
        its module's parameters: where they are in several, to the first of these.

        Raises:
            PlanError: a statistic has no group, or the plan does not fit the parameters.
        """
        names = leaf_names(params)
        positions = _stat_positions(self, names, self.assign(names), leaf_names(stats))
        _raise(self, names, [_stat_problem(name) for name, p in positions.items() if p < 0])
        return {name: self.groups[position] for name, position in positions.items()}

    def frozen_modules(self, params: PyTree, stats: PyTree) -> frozenset[str]:
        """Paths of the modules that run as in evaluation while the rest trains.

        They are the modules whose statistics are frozen, and the topmost ones of which all
        parameters and statistics are.

        Raises:
            PlanError: the plan does not fit the parameters or the statistics.
        """
        stat_groups = self.assign_stats(params, stats)
        names = leaf_names(params)
        groups = [self.groups[position] for position in self.assign(names)]
        active = [
            name
            for name, group in zip(names, groups, strict=True)
            if not (group.frozen and group.freezes_stats)
        ]
        active += [name for name, group in stat_groups.items() if not group.freezes_stats]
        training_prefixes = {prefix for name in active for prefix in path_prefixes(name)[:-1]}
        topmost = {
            next((p for p in path_prefixes(name)[:-1] if p not in training_prefixes), None)
            for name in (*names, *stat_groups)
        }
        norms = {_module(name) for name, group in stat_groups.items() if group.freezes_stats}
        whole = frozenset(path for path in topmost if path is not None)
        return whole | frozenset(norm for norm in norms if not is_below(norm, whole))

    def describe(
        self,
        model: Any,
        *,
        optimizer: str = DEFAULT_OPTIMIZER,
        optimizers: Mapping[str, Callable[[], Transformation] | Optimizer] | None = None,
    ) -> str:
        """The plan as a table for one model: leaves, parameters and optimizer bytes of each group.

        Args:
            model: a `Model`, or any tree of parameters.
            optimizer: as for `optimizer`.
            optimizers: as for `optimizer`.

        Raises:
            PlanError: the plan does not fit the model.
        """
        params = getattr(model, "params", model)
        if params is not model:
            self.check(params, model.stats)
        names, leaves = leaf_names(params), jax.tree.leaves(params)
        assigned = self.assign(names)
        rows = []
        for position, group in enumerate(self.groups):
            mine = [leaf for leaf, p in zip(leaves, assigned, strict=True) if p == position]
            rows.append([*row(group), len(mine), count_parameters(mine)])
        trainable, _ = split(params, self)
        tx = self.optimizer(1.0, optimizer=optimizer, optimizers=optimizers)
        state = jax.eval_shape(tx.init, trainable)
        header = [*HEADER, "leaves", "parameters"]
        share = count_parameters(trainable) / max(count_parameters(params), 1)
        return (
            f"{self._title}\n{format_table(header, rows)}\n"
            f"{count_parameters(trainable)} of {count_parameters(params)} parameters train "
            f"({share:.1%}); optimizer state {format_bytes(count_bytes(state))}"
        )

    def optimizer(
        self,
        learning_rate: float | optax.Schedule,
        *,
        optimizer: str = DEFAULT_OPTIMIZER,
        weight_decay: float | jax.Array = 0.0,
        clip_norm: float | None = None,
        schedule: optax.Schedule | None = None,
        optimizers: Mapping[str, Callable[[], Transformation] | Optimizer] | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        """An Optax transformation over the trainable tree.

        Args:
            learning_rate: a number, or a schedule from the step to one. A number is kept in the
                state under the name `learning_rate`, so that `optax.tree.set` can change it.
            optimizer: a name in `OPTIMIZERS` or `optimizers`, for the groups that name none.
            weight_decay: decoupled weight decay for the groups that name none; inside a function
                that JAX traces also an array of shape (), as where `jax.vmap` tries several.
            clip_norm: upper bound of the norm of all trainable gradients together.
            schedule: a factor on the learning rate, from the step.
            optimizers: more optimizers by name. Each is a function without arguments that gives a
                transformation from gradients to directions, such as `optax.scale_by_adam`; weight
                decay and learning rate come after it.

        Raises:
            PlanError: an optimizer is unknown, or `weight_decay` or `clip_norm` is out of range;
                at `init`, the tree has leaves that the plan freezes or does not know, or that have
                not as many blocks as `lr_scale` has factors.

        Example:
            `plan.optimizer(1e-3, optimizer="mine", optimizers={"mine": optax.scale_by_yogi})`
        """
        is_known = not isinstance(weight_decay, Tracer)
        if is_known and not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise PlanError(f"weight_decay: expected a number from 0, found {weight_decay}")
        known = {**OPTIMIZERS, **{n: as_optimizer(o) for n, o in (optimizers or {}).items()}}
        used = sorted({g.optimizer or optimizer for g in self.groups if not g.frozen})
        if unknown := [name for name in used if name not in known]:
            raise PlanError(
                f"plan {self.name!r}: expected optimizers among {', '.join(known)}, found "
                f"{', '.join(unknown)}; correct them, or name them in `optimizers`"
            )

        def settings(names: Sequence[str]) -> dict[str, Settings]:
            groups = _trainable_groups(self, tuple(names))
            return {
                name: Settings(
                    optimizer=group.optimizer or optimizer,
                    weight_decay=weight_decay if group.weight_decay is None else group.weight_decay,
                    lr_scale=group.lr_scale,
                    decay_all=group.decay_all,
                )
                for name, group in zip(names, groups, strict=True)
            }

        return build_optimizer(
            settings, {name: known[name] for name in used}, learning_rate, schedule, clip_norm
        )

    def to_json(self) -> str:
        """The plan as JSON; `from_json` gives it back."""
        fields = {"name": self.name, "share": self.share, "patience": self.patience}
        return json.dumps({**fields, "groups": [g.to_dict() for g in self.groups]}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote; what groups leave out, and a patience, is as by default.

        Raises:
            PlanError: the text is not a plan.
        """
        try:
            fields = json.loads(text)
            groups = tuple(Group.from_dict(group) for group in fields["groups"])
            return cls(groups, fields["name"], fields["share"], fields.get("patience"))
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(
                f"plan: expected the JSON that Plan.to_json writes, found {error!r}"
            ) from error


def _matches_any(patterns: Sequence[Pattern], names: Sequence[str]) -> bool:
    return any(matches(pattern, name) for pattern in patterns for name in names)


@functools.lru_cache(maxsize=256)
def _first_matches(plan: Plan, names: tuple[str, ...]) -> tuple[int, ...]:
    """For each name the position of the first group that matches, or -1."""

    def first(name: str) -> int:
        hits = (i for i, group in enumerate(plan.groups) if _matches_any(group.patterns, (name,)))
        return next(hits, -1)

    return tuple(map(first, names))


@functools.lru_cache(maxsize=256)
def _assign(plan: Plan, names: tuple[str, ...]) -> tuple[int, ...]:
    _raise(plan, names, _problems(plan, names))
    return _first_matches(plan, names)


def _trainable_groups(plan: Plan, names: tuple[str, ...]) -> list[Group]:
    """The groups of the trainable half's leaves; those of frozen groups are all absent there."""
    positions = _first_matches(plan, names)
    groups = [plan.groups[position] for position in positions if position >= 0]
    unknown = [name for name, position in zip(names, positions, strict=True) if position < 0]
    frozen = [n for n, p in zip(names, positions, strict=True) if p >= 0 and plan.groups[p].frozen]
    if unknown or frozen:
        raise PlanError(
            f"plan {plan.name!r}: expected the trainable half of the parameters, found leaves that "
            f"it freezes: {frozen}, and leaves in no group: {unknown}; take the first half of "
            "split(params, plan)"
        )
    return groups


def _stat_positions(
    plan: Plan, names: Sequence[str], positions: Sequence[int], stats: tuple[str, ...]
) -> dict[str, int]:
    """For each statistic the position of its group, or -1."""

    def beside(stat: str) -> int:
        module = _module(stat)
        found = [p for name, p in zip(names, positions, strict=True) if _module(name) == module]
        return min((p for p in found if p >= 0), default=-1)

    own = zip(stats, _first_matches(plan, stats), strict=True)
    return {stat: position if position >= 0 else beside(stat) for stat, position in own}


def _module(name: str) -> str:
    return name.rpartition("/")[0]


def _problems(plan: Plan, names: tuple[str, ...]) -> list[str]:
    """The parameters without a group and the groups without a parameter, a line each."""
    positions = _first_matches(plan, names)
    problems = [
        f" - {name}: in no group; add a last Group('**')"
        for name, position in zip(names, positions, strict=True)
        if position < 0
    ]
    for position, group in enumerate(plan.groups):
        if position in positions:
            continue
        why = "all leaves that it matches belong to earlier groups; move it up, or leave it out"
        if not _matches_any(group.patterns, names):
            why = _no_match(group.label, names)
        problems.append(f" - group {group.label!r}: {why}")
    return problems


def _stat_problem(name: str) -> str:
    return (
        f" - {name}: a statistic in no group; add {name!r} to the patterns of the group that shall "
        "say what becomes of it"
    )


def _no_match(text: str, names: Sequence[str]) -> str:
    likely = ", ".join(nearest(text, names)) or "none, there are no leaves"
    return f"{text!r} matches no leaf; the nearest names are {likely}"


def _raise(plan: Plan, names: Sequence[str], problems: Sequence[str]) -> None:
    if problems:
        raise PlanError(
            f"plan {plan.name!r}: expected a group for each of {len(names)} leaves and a leaf for "
            f"each of {len(plan.groups)} groups, found\n" + "\n".join(problems)
        )
