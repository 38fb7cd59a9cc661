"""How functions and modules of many conventions are told to train or to evaluate."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax

# The usual names of the argument that switches a network or a layer to training, and to evaluation.
TRAINING_KEYWORDS = ("train", "training", "is_training")
EVALUATION_KEYWORDS = ("deterministic", "use_running_average")

_BATCH_AXIS: ContextVar[str | None] = ContextVar("batch axis", default=None)


@contextlib.contextmanager
def named_batch_axis(name: str) -> Iterator[None]:
    """Within it, `current_batch_axis` is the axis of that name."""
    token = _BATCH_AXIS.set(name)
    try:
        yield
    finally:
        _BATCH_AXIS.reset(token)


def current_batch_axis() -> str | None:
    """The axis of devices that a batch is spread over; `None` where a device sees all of it."""
    return _BATCH_AXIS.get()


def mode_values(train: bool) -> dict[str, bool]:
    """What each of the usual mode arguments must be.

    >>> mode_values(train=True)["training"], mode_values(train=True)["deterministic"]
    (True, False)
    """
    return {name: train for name in TRAINING_KEYWORDS} | {
        name: not train for name in EVALUATION_KEYWORDS
    }


def keywords_of(function: Callable[..., Any]) -> frozenset[str]:
    """The names of the arguments that a callable takes by keyword.

    >>> sorted(keywords_of(lambda params, inputs, /, scale, *, train: None))
    ['scale', 'train']
    """
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in _parameters(function) if p.kind in kinds)


def can_start(apply: Callable[..., Any]) -> bool:
    """Whether a network's forward pass can begin at a stage, by `start`.

    >>> can_start(lambda params, stats, inputs, *, train, start=None, stop=None: (inputs, stats))
    True
    """
    if hasattr(apply, "body"):  # what surgery puts around a network's own forward pass
        return can_start(apply.body)
    known = getattr(apply, "can_start", None)
    return "start" in keywords_of(apply) if known is None else known


def positional_count(function: Callable[..., Any], others: Sequence[str] = ()) -> int:
    """How many arguments a callable needs by position, those named in `others` left aside.

    >>> positional_count(lambda params, inputs, train, scale=1.0: None, others=["train"])
    2
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(
        p.kind in kinds and p.default is p.empty and p.name not in others
        for p in _parameters(function)
    )


def evaluation_arguments(
    method: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with every mode argument that `method` has set to evaluation.

    >>> evaluation_arguments(lambda x, train=True: None, ("x", True), {})
    (('x', False), {})
    """
    bound = inspect.signature(method).bind(*args, **kwargs)
    accepted = keywords_of(method)
    modes = mode_values(train=False)
    bound.arguments.update({name: modes[name] for name in modes if name in accepted})
    return bound.args, bound.kwargs


def _parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    try:
        return tuple(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return ()


class StopReached(Exception):
    """Ends a forward pass: what enters the submodule that it should stop at."""

    def __init__(self, features: jax.Array) -> None:
        super().__init__()
        self.features = features
