"""What trains, and how fast: an ordered table of groups in which the first match wins."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax

from jaxtransfer.errors import PlanError
from jaxtransfer.partition.group import Group
from jaxtransfer.partition.optimizer import DEFAULT_OPTIMIZER, OPTIMIZERS, Settings, build_optimizer
from jaxtransfer.tree import (
    count_bytes,
    count_parameters,
    is_below,
    leaf_names,
    matches,
    nearest,
    split,
)
from jaxtransfer.tree.summary import format_bytes, format_table
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class Plan:
    """What trains, in one table.

    Every leaf belongs to the first group that matches its name. A leaf without a group and a group
    without a leaf are errors. A plan chooses the leaves that train, so `jt.split(params, plan)` gives the
    trainable and the frozen half.

    Attributes:
        groups: the rows, in order.
        name: what the plan is called in tables and reports.
        share: in a sequence of plans, this plan's share of the steps relative to the others'.
    """

    groups: tuple[Group, ...]
    name: str = "plan"
    share: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        unknown = [g.optimizer for g in self.groups if g.optimizer not in (None, *OPTIMIZERS)]
        if not self.groups or unknown or not self.share > 0:
            raise PlanError(
                f"plan {self.name!r}: expected at least one group, a share above 0 and optimizers among "
                f"{', '.join(OPTIMIZERS)}, found {len(self.groups)} groups, share {self.share}, "
                f"optimizers {unknown or 'as expected'}"
            )

    def assign(self, names: Sequence[str]) -> tuple[int, ...]:
        """For each name of a parameter, the position of its group.

        Raises:
            PlanError: a name without a group, or a group without a name; the message lists all of both.
        """
        return _assign(self, tuple(names))

    def chooses(self, names: Sequence[str]) -> tuple[bool, ...]:
        """For each name of a parameter, whether it trains."""
        return tuple(not self.groups[group].frozen for group in self.assign(names))

    def assign_stats(self, params: PyTree, stats: PyTree) -> dict[str, Group]:
        """The group of each running statistic, by name.

        A statistic belongs to the first group that matches its own name, or else to the group of the
        parameters of its module.

        Raises:
            PlanError: a statistic has no group.
        """
        names = leaf_names(params)
        groups = dict(zip(names, self.assign(names), strict=True))
        return {stat: self.groups[self._group_of_stat(stat, groups)] for stat in leaf_names(stats)}

    def _group_of_stat(self, stat: str, groups: dict[str, int]) -> int:
        for position, group in enumerate(self.groups):
            if any(matches(pattern, stat) for pattern in group.patterns):
                return position
        module = stat.rpartition("/")[0]
        beside = [group for name, group in groups.items() if name.rpartition("/")[0] == module]
        if not beside:
            raise PlanError(
                f"plan {self.name!r}: expected a group for the statistic {stat!r}, found none; add "
                f"Group({module + '/**'!r}) or a last Group('**')"
            )
        return min(beside)

    def frozen_modules(self, params: PyTree, stats: PyTree) -> frozenset[str]:
        """Paths of the modules that run as in evaluation while the rest trains.

        They are the modules whose statistics are frozen, and the topmost ones of which all parameters
        and statistics are.
        """
        stat_groups = self.assign_stats(params, stats)
        names = leaf_names(params)
        active = [
            name
            for name, position in zip(names, self.assign(names), strict=True)
            if not (self.groups[position].frozen and self.groups[position].stats == "frozen")
        ]
        active += [name for name, group in stat_groups.items() if group.stats != "frozen"]
        training_prefixes = {prefix for name in active for prefix in _prefixes(name)}
        topmost = {
            next((p for p in _prefixes(name) if p not in training_prefixes), None)
            for name in (*names, *stat_groups)
        }
        norms = {
            name.rpartition("/")[0]
            for name, group in stat_groups.items()
            if group.stats == "frozen"
        }
        whole = frozenset(path for path in topmost if path is not None)
        return whole | frozenset(norm for norm in norms if not is_below(norm, whole))

    def describe(self, model: Any) -> str:
        """The plan as a table for one model: leaves, parameters and optimizer bytes of each group.

        Args:
            model: a `Model`, or any tree of parameters.

        Raises:
            PlanError: the plan does not fit the model.
        """
        params = getattr(model, "params", model)
        names, leaves = leaf_names(params), jax.tree.leaves(params)
        assigned = self.assign(names)
        rows = []
        for position, group in enumerate(self.groups):
            mine = [leaf for leaf, p in zip(leaves, assigned, strict=True) if p == position]
            rows.append(
                [
                    group.label,
                    "frozen" if group.frozen else f"{group.lr_scale:g}x",
                    _decay_text(group),
                    "-" if group.frozen else group.optimizer or "default",
                    group.stats,
                    len(mine),
                    count_parameters(mine),
                ]
            )
        trainable, _ = split(params, self)
        state = jax.eval_shape(self.optimizer(1.0).init, trainable)
        header = ["match", "rate", "decay", "optimizer", "statistics", "leaves", "parameters"]
        share = count_parameters(trainable) / max(count_parameters(params), 1)
        return (
            f"plan {self.name}\n{format_table(header, rows)}\n"
            f"{count_parameters(trainable)} of {count_parameters(params)} parameters train ({share:.1%}); "
            f"optimizer state {format_bytes(count_bytes(state))}"
        )

    def optimizer(
        self,
        learning_rate: float | optax.Schedule,
        *,
        optimizer: str = DEFAULT_OPTIMIZER,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        schedule: optax.Schedule | None = None,
    ) -> optax.GradientTransformation:
        """An Optax transformation over the trainable tree.

        Args:
            learning_rate: a number, or a schedule from the step to one. A number is kept in the state
                under the name `learning_rate`, so that `optax.tree.set` can change it.
            optimizer: a name in `OPTIMIZERS`, for the groups that name none.
            weight_decay: decoupled weight decay for the groups that name none.
            clip_norm: upper bound of the norm of all trainable gradients together.
            schedule: a factor on the learning rate, from the step.

        Raises:
            PlanError: the optimizer is unknown; at `init`, the plan does not fit the tree.
        """

        def settings(names: Sequence[str]) -> dict[str, Settings]:
            # The plan was checked against all parameters when they were split; of the trainable ones
            # alone, groups that are frozen have none.
            positions = _first_matches(self, tuple(names))
            if -1 in positions:
                self.assign(names)
            groups = [self.groups[position] for position in positions]
            return {
                name: Settings(
                    optimizer=group.optimizer or optimizer,
                    weight_decay=weight_decay if group.weight_decay is None else group.weight_decay,
                    lr_scale=group.lr_scale,
                )
                for name, group in zip(names, groups, strict=True)
            }

        used = {g.optimizer or optimizer for g in self.groups if not g.frozen}
        return build_optimizer(settings, sorted(used), learning_rate, schedule, clip_norm)

    def to_json(self) -> str:
        """The plan as JSON; `from_json` gives it back."""
        groups = [group.to_dict() for group in self.groups]
        return json.dumps({"name": self.name, "share": self.share, "groups": groups}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            PlanError: the text is not a plan.
        """
        try:
            fields = json.loads(text)
            groups = tuple(Group.from_dict(group) for group in fields["groups"])
            return cls(groups, fields["name"], fields["share"])
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(
                f"plan: expected the JSON that Plan.to_json writes, found {error!r}"
            ) from error


def _decay_text(group: Group) -> str:
    if group.frozen:
        return "-"
    return "default" if group.weight_decay is None else f"{group.weight_decay:g}"


def _prefixes(name: str) -> list[str]:
    segments = name.split("/")
    return ["/".join(segments[: i + 1]) for i in range(len(segments) - 1)]


@functools.lru_cache(maxsize=256)
def _first_matches(plan: Plan, names: tuple[str, ...]) -> tuple[int, ...]:
    """For each name the position of the first group that matches, or -1."""

    def first(name: str) -> int:
        hits = (i for i, g in enumerate(plan.groups) if any(matches(p, name) for p in g.patterns))
        return next(hits, -1)

    return tuple(map(first, names))


@functools.lru_cache(maxsize=256)
def _assign(plan: Plan, names: tuple[str, ...]) -> tuple[int, ...]:
    positions = _first_matches(plan, names)
    problems = [
        f" - {name}: in no group; add a last Group('**')"
        for name, position in zip(names, positions, strict=True)
        if position < 0
    ]
    for position, group in enumerate(plan.groups):
        if position not in positions:
            problems.append(f" - group {group.label!r}: {_why_empty(plan, position, names)}")
    if problems:
        raise PlanError(
            f"plan {plan.name!r}: expected a group for each of {len(names)} leaves and a leaf for each of "
            f"{len(plan.groups)} groups, found\n" + "\n".join(problems)
        )
    return positions


def _why_empty(plan: Plan, position: int, names: tuple[str, ...]) -> str:
    group = plan.groups[position]
    if any(matches(pattern, name) for pattern in group.patterns for name in names):
        return "all leaves that it matches belong to earlier groups; move it up, or leave it out"
    likely = ", ".join(nearest(group.label, names))
    return f"matches no leaf; the nearest names are {likely or 'none, there are no leaves'}"
