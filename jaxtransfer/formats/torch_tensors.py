"""PyTorch's tensors in pickles, as views of storages: nothing is read before it is asked for.

Sources: `torch/_utils.py`, `torch/_tensor.py` and `torch/serialization.py` of
https://github.com/pytorch/pytorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from jaxtransfer.formats.pickled import (
    PLAIN_GLOBALS,
    Array,
    Dictionary,
    Global,
    Refused,
    dimensions,
    globals_of,
    kind_of,
    plain_text,
    shortened,
)

DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
        "complex64": np.complex64,
        "complex128": np.complex128,
    }.items()
}
"""The dtypes of tensors by their names in `torch`; those without an array form are absent."""

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    # Those of quantised tensors, which are refused by name; here they need a size.
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A part (mostly all) of the values in one storage of the file, as numbers of one dtype."""

    key: str
    dtype: np.dtype[Any]
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; start and strides count numbers, not bytes."""

    storage: Storage
    dtype: np.dtype[Any]
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """How many bytes its values take, each counted as often as the shape repeats it."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A tensor that has no array form."""

    reason: str


# Stand-ins for the functions that rebuild tensors. Their arguments are as PyTorch defines them.


def _rebuild_tensor(storage: Any, start: Any, shape: Any, strides: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor on {kind_of(storage)}, where a storage was expected")
    return _view_of(storage, storage.dtype, start, shape, strides)


def _view_of(storage: Storage, dtype: np.dtype, start: Any, shape: Any, strides: Any) -> Tensor:
    (start,), shape, strides = dimensions([start]), dimensions(shape), dimensions(strides)
    if len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    last = start + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last + 1) * dtype.itemsize > storage.size * storage.dtype.itemsize:
        raise ValueError(
            f"a tensor of shape {shape} with strides {strides} from number {start} on, in the "
            f"storage {shortened(storage.key)!r} of {storage.size} {storage.dtype} numbers"
        )
    return Tensor(storage, dtype, start, shape, strides)


def _rebuild_tensor_v2(
    storage: Any,
    start: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> Tensor | Unreadable:
    return _unless_lazy(_rebuild_tensor(storage, start, shape, strides), metadata)


def _rebuild_tensor_v3(
    storage: Any,
    start: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor | Unreadable:
    if not isinstance(storage, Storage) or not isinstance(dtype, Global):
        raise ValueError(f"a tensor on {kind_of(storage)} of the dtype {kind_of(dtype)}")
    tensor = _view_of(storage, _dtype_of(dtype), start, shape, strides)
    return _unless_lazy(tensor, metadata)


def _unless_lazy(tensor: Tensor, metadata: Any) -> Tensor | Unreadable:
    if isinstance(metadata, Dictionary) and any(mark for _, mark in metadata.pairs()):
        return Unreadable(
            "conjugated or negated only when used: save x.resolve_conj().resolve_neg()"
        )
    return tensor


def _dtype_of(name: Global) -> np.dtype[Any]:
    kind = name.name.removeprefix("torch.")
    if kind not in DTYPES:
        raise Refused(f"a tensor of the dtype {name.name}, which has no array form")
    return DTYPES[kind]


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    return tensor


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    # Other functions have arguments of which the caller has not counted what they take.
    is_known = isinstance(function, Global) and function.name.startswith("torch._utils._rebuild_")
    if not is_known or function.call is None:
        raise Refused(f"a call of {kind_of(function)}")
    if not isinstance(arguments, tuple) or kind not in (_TENSOR, _PARAMETER):
        raise Refused(f"a tensor of the kind {kind_of(kind)}")
    return function.call(*arguments)


def _rebuild_on_device(tensor: Any, dtype: Any, device: Any, requires_grad: Any) -> Any:
    """A tensor that was on a TPU or another device, as the CPU's copy of it."""
    has = tensor.values.dtype if isinstance(tensor, Array) else getattr(tensor, "dtype", None)
    if not isinstance(dtype, Global) or has is None or has != _dtype_of(dtype):
        return Unreadable("kept in another dtype than its own")
    return tensor


def _unreadable(reason: str) -> Callable[..., Unreadable]:
    return lambda *arguments: Unreadable(reason)


def _device(kind: Any, index: Any = None) -> str:
    return ":".join(plain_text(part)[:16] for part in (kind, index) if part is not None)


def _same(value: Any, *_: Any) -> Any:
    return value


def _as_tuple(value: Any = ()) -> tuple[int, ...]:
    return dimensions(value)


_SPARSE = "sparse: save x.to_dense()"
_QUANTISED = "quantised: save x.dequantize()"

_GLOBALS: Mapping[tuple[str, str], Callable[..., Any] | None] = {
    **PLAIN_GLOBALS,
    **{("torch", name): None for name in DTYPES},
    **{(module, name): None for module in ("torch", "torch.cuda") for name in _STORAGES},
    ("torch.storage", "UntypedStorage"): None,
    ("torch", "Size"): _as_tuple,
    ("torch", "device"): _device,
    ("torch", "Tensor"): None,
    ("torch.nn.parameter", "Parameter"): None,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _rebuild_on_device,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _rebuild_on_device,
    ("torch._utils", "_rebuild_xla_tensor"): _rebuild_on_device,
    ("torch._utils", "_rebuild_sparse_tensor"): _unreadable(_SPARSE),
    ("torch._utils", "_rebuild_sparse_csr_tensor"): _unreadable(_SPARSE),
    ("torch._utils", "_rebuild_nested_tensor"): _unreadable("nested: save x.unbind()"),
    ("torch._utils", "_rebuild_qtensor"): _unreadable(_QUANTISED),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _unreadable("without values ('meta')"),
    ("torch.serialization", "_get_layout"): _same,
    **{
        ("torch", f"per_{part}_{scheme}"): None
        for part in ("tensor", "channel")
        for scheme in ("affine", "symmetric", "affine_float_qparams")
    },
    **{
        ("torch.jit._pickle", f"build_{kind}list"): _same
        for kind in ("int", "double", "bool", "tensor")
    },
    ("torch.jit._pickle", "restore_type_tag"): _same,
}
_find_plain = globals_of(_GLOBALS)
_TENSOR = _find_plain("torch", "Tensor")
_PARAMETER = _find_plain("torch.nn.parameter", "Parameter")
_SCRIPT_CLASS = Global("__torch__", lambda: Dictionary(is_object=True))


def find_global(module: str, name: str) -> Global | None:
    """The stand-in for what a pickle names; TorchScript's classes are objects with attributes."""
    is_script = module == "__torch__" or module.startswith("__torch__.")
    return _SCRIPT_CLASS if is_script else _find_plain(module, name)


class Storages:
    """The storages that a pickle refers to by persistent ids."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def load(self, identity: Any) -> Storage:
        """The storage, or the view of one (which old files have), for a persistent id."""
        if not (isinstance(identity, tuple) and len(identity) in (5, 6)):
            raise Refused(f"the persistent id {kind_of(identity)}")
        what, kind, key, _, size, *view = identity
        name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
        if what != "storage" or name not in _STORAGES or not isinstance(key, str):
            raise Refused(f"the persistent id {plain_text(identity)}")
        (size,) = dimensions([size])
        storage = Storage(key, DTYPES[_STORAGES[name]], 0, size)
        if self.by_key.setdefault(key, storage) != storage:
            raise ValueError(f"the storage {shortened(key)!r} with two sizes or dtypes")
        return self._part(storage, view[0]) if view and view[0] is not None else storage

    def _part(self, storage: Storage, view: Any) -> Storage:
        _, start, size = view
        start, size = dimensions([start, size])
        if start + size > storage.size:
            raise ValueError(f"a view beyond the end of the storage {shortened(storage.key)!r}")
        return Storage(storage.key, storage.dtype, start, size)
