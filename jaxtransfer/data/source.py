"""What training asks of labelled examples, wherever they come from."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from jaxtransfer.models import Preprocess
from jaxtransfer.types import PyTree


@runtime_checkable
class Data(Protocol):
    """Labelled examples that can be read in any order.

    Attributes:
        labels: all labels, the first axis of length `len(data)`: integers from 0 of shape (count,)
            for classes, shape (count, outputs) for several labels or numbers an example; for
            several tasks a dict of these.
        classes: the names of the classes, or `None` where they have none; for several tasks a dict.
        in_memory: whether `read` costs no more than indexing an array; what is not in memory is
            read ahead by other threads or processes.
    """

    in_memory: ClassVar[bool]

    @property
    def labels(self) -> PyTree:
        """The labels of all examples."""
        ...

    @property
    def classes(self) -> Any:
        """The names of the classes."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Data:
        """The examples at these positions, in this order."""
        ...

    def ready(self, preprocess: Preprocess) -> Data:
        """The same examples in the form that `preprocess_images` takes for this preprocessing.

        Raises:
            DataError: they cannot be brought into that form.
        """
        ...

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        """The examples at these positions as a batch: `image`, `label`, and what else there is."""
        ...

    def fingerprint(self) -> str:
        """What tells these examples from any others, as far as can be known without reading all."""
        ...
