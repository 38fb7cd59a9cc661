"""A hash that two trees share exactly when they are the same."""

from __future__ import annotations

import hashlib

from jaxtransfer.tree.names import named_leaves
from jaxtransfer.tree.summary import as_host_array
from jaxtransfer.types import PyTree


def fingerprint(tree: PyTree) -> str:
    """The SHA-256 of a tree's names, shapes, dtypes and values.

    >>> import numpy as np
    >>> fingerprint({"bias": np.zeros(2)}) == fingerprint({"bias": np.zeros(2, np.float32)})
    False
    """
    digest = hashlib.sha256()
    for name, leaf in named_leaves(tree):
        array = as_host_array(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
