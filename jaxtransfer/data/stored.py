"""Labelled images in files or in a store of records, decoded when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from jaxtransfer.data.arrays import ArrayData
from jaxtransfer.data.augment.crop import RandomResizedCrop
from jaxtransfer.data.decode import decode_image, decode_part
from jaxtransfer.data.targets import take_labels
from jaxtransfer.errors import DataError
from jaxtransfer.models import AS_THEY_COME, Preprocess
from jaxtransfer.tree import fingerprint
from jaxtransfer.types import PyTree


class ImageStore(Protocol):
    """Images by number, as they are stored; several threads may ask at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """The bytes of an image file, a Pillow image or an array."""
        ...

    def name(self, index: int) -> str:
        """What messages call this image."""
        ...

    def fingerprint(self) -> str:
        """What tells the store from any other."""
        ...


@dataclass(frozen=True)
class StoredData:
    """Labelled images that are decoded when they are read.

    Attributes:
        store: where the images are.
        labels: of the examples at `positions`; shapes as `Data` says.
        classes: the names of the classes, or `None` where they have none.
        positions: the number in the store of each example.
        preprocess: what the images are read for.
        skipped: what was left out as it cannot be read, and why.
    """

    store: ImageStore
    labels: PyTree
    classes: Any
    positions: np.ndarray
    preprocess: Preprocess = AS_THEY_COME
    skipped: tuple[str, ...] = ()
    in_memory: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, index: int) -> str:
        """What messages call this example: for a file its path."""
        return self.store.name(int(self.positions[index]))

    def take(self, indices: np.ndarray) -> StoredData:
        """The examples at these positions, in this order."""
        chosen = self.positions[indices]
        return replace(self, positions=chosen, labels=take_labels(self.labels, indices))

    def ready(self, preprocess: Preprocess) -> StoredData:
        """The same examples, to be read for this preprocessing.

        Images are then resized on the host to the canvas of which the device cuts out the centre.
        Without a size in `preprocess` they stay as they are, and must all have one shape.

        Raises:
            DataError: the first image does not fit the preprocessing.
        """
        data = replace(self, preprocess=preprocess)
        if len(data):
            data.image(0)
        return data

    def image(self, index: int) -> np.ndarray:
        """One image, decoded, shape (height, width, channel).

        Raises:
            DataError: it cannot be read; the message names it.
        """
        return decode_image(self._stored(index), self.preprocess, self.name(index))

    def part(
        self, index: int, crop: RandomResizedCrop, generator: np.random.Generator
    ) -> np.ndarray:
        """A part of one image, drawn at random and decoded, shape (*crop.size, channel).

        Raises:
            DataError: as `image` says.
        """
        stored, where = self._stored(index), self.name(index)
        return decode_part(stored, self.preprocess, where, crop, generator)

    def _stored(self, index: int) -> Any:
        try:
            return self.store[int(self.positions[index])]
        except OSError as error:
            why = error.strerror or error
            raise DataError(f"{self.name(index)}: expected an image, found: {why}") from error

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        """The examples at these positions as a batch of `image` and `label`.

        Raises:
            DataError: an image cannot be read, or has another shape than the first one.
        """
        images = [self.image(int(index)) for index in indices]
        check_forms(images, lambda i: self.name(int(indices[i])))
        return {"image": np.stack(images), "label": take_labels(self.labels, indices)}

    def load(self, preprocess: Preprocess | None = None) -> ArrayData:
        """All images decoded into memory, on all cores.

        Args:
            preprocess: what to read them for; `None` for what they are ready for.

        Raises:
            DataError: as `read` says.
        """
        data = self if preprocess is None else self.ready(preprocess)
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(data.image, range(len(data))))
        check_forms(images, data.name)
        return ArrayData(np.stack(images), data.labels, data.classes)

    def fingerprint(self) -> str:
        """A hash of the store, of which examples of it these are, and of their labels."""
        chosen = fingerprint({"positions": self.positions, "labels": self.labels})
        return hashlib.sha256(f"{self.store.fingerprint()} {chosen}".encode()).hexdigest()


def check_forms(images: Sequence[np.ndarray], name: Callable[[int], str]) -> None:
    """Raise a `DataError` that names the first image whose shape or dtype is not the first one's.

    Args:
        images: images of one batch.
        name: what messages call the image at a position.
    """
    forms = [f"{image.shape} {image.dtype}" for image in images]
    wrong = next((i for i, form in enumerate(forms) if form != forms[0]), None)
    if wrong is not None:
        raise DataError(
            f"{name(wrong)}: expected the shape and dtype of {name(0)}, {forms[0]}, found "
            f"{forms[wrong]}; give a preprocessing with size and channels"
        )


def stored_data(
    store: ImageStore, labels: PyTree, classes: Any, skipped: tuple[str, ...] = ()
) -> StoredData:
    """All images of a store, with their labels in the order of the store.

    Raises:
        DataError: there is no image, or there are not as many labels.
    """
    counts = {len(array) for array in jax.tree.leaves(labels)}
    if not len(store) or counts != {len(store)}:
        raise DataError(
            f"data: expected at least one image and as many labels, found {len(store)} images and "
            f"{', '.join(map(str, sorted(counts)))} labels"
        )
    return StoredData(store, labels, classes, np.arange(len(store)), skipped=skipped)
