"""What is frozen below everything that trains: how far a plan leaves a network as it is."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model
from jaxtransfer.models.calling import can_start
from jaxtransfer.partition import Plan
from jaxtransfer.train.precision import FLOAT32, Precision, cast_floats, promotion
from jaxtransfer.tree import leaf_names
from jaxtransfer.types import PyTree

BATCH = 2
"""Examples in the batch that a network is traced with."""

# Functions are printed with their addresses, which differ where what they compute does not.
_ADDRESS = re.compile(r"0x[0-9a-f]+")


@dataclass(frozen=True)
class StartAt:
    """A network's forward pass whose inputs are what enters a stage.

    Attributes:
        apply: the whole forward pass.
        stage: where it begins, unless a later stage is asked for.
    """

    apply: Callable[..., Any]
    stage: str

    def __call__(
        self,
        params: PyTree,
        stats: PyTree,
        inputs: jax.Array,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        start: str | None = None,
        stop: str | None = None,
        frozen_modules: frozenset[str] = frozenset(),
    ) -> tuple[Any, PyTree]:
        """The forward pass of `Model.apply`, from the stage on."""
        start = self.stage if start is None else start
        if start == stop:
            return inputs, stats
        cut = {"start": start} if stop is None else {"start": start, "stop": stop}
        how = {"train": train, "rngs": rngs, "frozen_modules": frozen_modules}
        return self.apply(params, stats, inputs, **how, **cut)


def frozen_prefix(
    model: Model, plan: Plan, inputs: Any = None, *, precision: Precision = FLOAT32
) -> str | None:
    """The deepest stage below which a plan leaves a network as it is.

    What enters this stage is the same for an example in each step: below it nothing trains, no
    statistics follow the data, no dropout or drop path acts, and all is computed in training as in
    evaluation. So it can be computed once. That this is so is read from the forward pass itself,
    which is traced stage by stage as a training step of the plan runs it; nothing is computed.

    Args:
        model: a `Model`; its arrays are not looked at.
        plan: what trains.
        inputs: a batch as it enters the network, after preprocessing, or its shape and dtype; by
            default images of the size that the model's spec has.
        precision: the dtypes of the training step.

    Returns:
        A name among `model.spec.stages`; `None` where a layer that has parameters cannot be left
        out, or the network cannot begin at a stage.

    Raises:
        TrainingError: there are no `inputs`, and the spec has no input size.
        PlanError: the plan does not fit the model.

    >>> import jaxtransfer as jt
    >>> model = jt.load("checkpoints/glyphs")
    >>> jt.frozen_prefix(model, jt.probe(model)), jt.frozen_prefix(model, jt.full(model))
    ('head', None)
    """
    if inputs is None:
        inputs = _default_inputs(model)
    return find_prefix(model, plan, inputs, precision)[0]


def _default_inputs(model: Model) -> Any:
    spec = model.spec
    if spec.input_size is None or spec.in_channels is None:
        raise TrainingError(
            f"frozen_prefix: expected inputs for {spec.name}, whose spec has no input size, found "
            "none; give a batch as it enters the network, or its jax.ShapeDtypeStruct"
        )
    return jax.ShapeDtypeStruct((BATCH, *spec.input_size, spec.in_channels), jnp.float32)


def find_prefix(
    model: Model, plan: Plan, inputs: Any, precision: Precision = FLOAT32
) -> tuple[str | None, str]:
    """`frozen_prefix`, and where it is `None` the reason in words, else what ends the prefix."""
    plan.check(model.params, model.stats)
    leaves, structure = jax.tree.flatten((model.params, model.stats, inputs))
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return _find(model.apply, model.spec.stages, plan, precision, structure, shapes)


# Runs that differ in their arrays alone trace their network once.
@functools.lru_cache(maxsize=32)
def _find(
    apply: Callable[..., Any],
    stages: tuple[str, ...],
    plan: Plan,
    precision: Precision,
    structure: Any,
    shapes: tuple[tuple[tuple[int, ...], Any], ...],
) -> tuple[str | None, str]:
    leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    params, stats, inputs = jax.tree.unflatten(structure, leaves)
    trace = _Trace(apply, params, stats, plan, precision)
    entering = jax.eval_shape(lambda values: cast_floats(values, precision.compute), inputs)
    pieces = _pieces(apply, stages)
    if not pieces:
        return None, "the network cannot begin its forward pass at a stage, by start="
    found, has_parameters = None, False
    for start, stop in pieces:
        try:
            piece = trace.piece(start, stop, entering)
        # Whatever a network of a user's own makes of being cut, it can be trained uncut.
        except Exception as error:
            return found, f"the network cannot be cut before {stop}: {error}"
        if piece.problem:
            return found, f"{start or stages[0]} {piece.problem}"
        entering, has_parameters = piece.leaving, has_parameters or piece.has_parameters
        # A step casts what enters to the dtype that it computes in, which must change nothing.
        if has_parameters and entering.dtype == precision.compute:
            found = stop
    return found, f"the stages below {pieces[-1][1]} hold no parameters in {precision.compute}"


def _pieces(apply: Callable[..., Any], stages: tuple[str, ...]) -> list[tuple[str | None, str]]:
    """From where to where a network can be traced, one piece after the other."""
    if can_start(apply):
        return list(zip((None, *stages[1:-1]), stages[1:], strict=True))
    # A head that surgery made can begin by itself, whatever is below it.
    head = getattr(apply, "path", None)
    return [(None, head)] if head is not None and head == stages[-1] else []


@dataclass(frozen=True)
class _Piece:
    """What is known of a piece of a network: what comes out, and why it cannot be left out."""

    leaving: Any
    has_parameters: bool = True
    problem: str = ""


@dataclass(frozen=True)
class _Trace:
    """How a training step of a plan runs a network, and how evaluation does."""

    apply: Callable[..., Any]
    params: PyTree
    stats: PyTree
    plan: Plan
    precision: Precision

    @functools.cached_property
    def trains(self) -> tuple[bool, ...]:
        return self.plan.chooses(leaf_names(self.params))

    @functools.cached_property
    def frozen_modules(self) -> frozenset[str]:
        return self.plan.frozen_modules(self.params, self.stats)

    def piece(self, start: str | None, stop: str, entering: Any) -> _Piece:
        """What the stages from `start` up to `stop`, which is left out, do with what enters."""
        cut = {"stop": stop} if start is None else {"start": start, "stop": stop}
        arguments = (self.params, self.stats, entering, jax.eval_shape(jax.random.key, 0))
        training = functools.partial(self._run, cut, True)
        traced, (leaving, _) = jax.make_jaxpr(training, return_shape=True)(*arguments)
        if not _is_batch_of_floats(leaving, entering):
            return _Piece(leaving, problem="gives other things than one array of floats")
        used, text = _computed(traced.jaxpr)
        count = len(self.trains)
        if any(u and t for u, t in zip(used, self.trains, strict=False)):
            return _Piece(leaving, problem="trains")
        if used[-1]:
            return _Piece(leaving, problem="has dropout or drop path, which acts")
        before = traced.jaxpr.invars[count : count + len(jax.tree.leaves(self.stats))]
        if not _are_same(before, traced.jaxpr.outvars[1:]):
            return _Piece(leaving, problem="has statistics that follow the data")
        evaluated = jax.make_jaxpr(functools.partial(self._run, cut, False))(*arguments)
        if _computed(evaluated.jaxpr)[1] != text:
            return _Piece(leaving, problem="computes in training what it does not in evaluation")
        return _Piece(leaving, any(used[:count]))

    def _run(
        self, cut: dict[str, str], train: bool, params: PyTree, stats: PyTree, inputs: Any, key: Any
    ) -> tuple[Any, PyTree]:
        how: dict[str, Any] = {"train": train, **cut}
        if train:
            how |= {"rngs": {"dropout": key}, "frozen_modules": self.frozen_modules}
        with promotion(self.precision):
            return self.apply(cast_floats(params, self.precision.compute), stats, inputs, **how)


def _is_batch_of_floats(leaving: Any, entering: Any) -> bool:
    count = jax.tree.leaves(entering)[0].shape[0]
    return (
        isinstance(leaving, jax.ShapeDtypeStruct)
        and leaving.shape[:1] == (count,)
        and jnp.issubdtype(leaving.dtype, jnp.floating)
    )


def _are_same(before: Sequence[Any], after: Sequence[Any]) -> bool:
    return len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))


def _computed(jaxpr: Any) -> tuple[list[bool], str]:
    """Which inputs the first output depends on, and how it is computed from these, as text."""
    wanted = [position == 0 for position in range(len(jaxpr.outvars))]
    needed, used = partial_eval.dce_jaxpr(jaxpr, wanted)
    return used, _ADDRESS.sub("", str(needed))


def depends_on(function: Callable[..., Any], *arguments: Any) -> list[bool]:
    """For each leaf of the arguments, whether any output of a traced function depends on it."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
