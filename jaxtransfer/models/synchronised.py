"""BatchNorm over a batch that lies on several devices, each of which sees its own part alone.

Under `jax.jit` a sharded batch is one array, and its mean that of all examples. Under `jax.pmap`
and `jax.shard_map` a layer has to be told the name of the axis along which to average.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn

from jaxtransfer.models.calling import named_batch_axis


@contextlib.contextmanager
def batch_axis(name: str) -> Iterator[None]:
    """Within it, every BatchNorm of Flax or of the zoo averages over the devices of an axis.

    The layers need no preparation: their `axis_name` is set for the time of the call, unless they
    have one. Functions of a user's own that normalise by hand have to average by themselves.

    Args:
        name: of the axis, that of `jax.pmap` or of the mesh.
    """
    with named_batch_axis(name), nn.intercept_methods(_interceptor(name)):
        yield


def _interceptor(name: str) -> Callable[..., Any]:
    def intercept(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not _is_batch_norm(module):
            return call(*args, **kwargs)
        # A bound module lives for one trace only, so its field can be set for the time of the call.
        object.__setattr__(module, "axis_name", name)
        try:
            return call(*args, **kwargs)
        finally:
            object.__setattr__(module, "axis_name", None)

    return intercept


def _is_batch_norm(module: nn.Module) -> bool:
    names = {field.name for field in dataclasses.fields(module)}
    return {"axis_name", "use_running_average"} <= names and module.axis_name is None  # pyright: ignore
