"""What a trained classifier does on labelled images: all that its logits tell, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtransfer.data import as_data
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.answers import check_answers, check_names
from jaxtransfer.evaluate.calibration import Calibration, calibration
from jaxtransfer.evaluate.confusion import (
    ClassScores,
    Confused,
    class_scores,
    confusion_matrix,
    most_confused,
)
from jaxtransfer.evaluate.predict import predict
from jaxtransfer.evaluate.temperature import best_temperature
from jaxtransfer.evaluate.top_losses import TopLosses, top_losses
from jaxtransfer.models import Model
from jaxtransfer.surgery import replace_head


@dataclass(frozen=True)
class Interpretation:
    """What a classifier does on labelled images.

    Attributes:
        classes: the names of the classes in the order of the outputs, or their numbers.
        logits: shape (count, classes).
        labels: shape (count,), int64, as numbers of outputs.
        confusion: counts of shape (classes, classes), a row a label, a column a prediction.
        scores: precision, recall and F1 of each class.
        most_confused: the most frequent errors.
        top_losses: the examples that the classifier is most wrong about.
        calibration: whether its probabilities are as often right as they say.
        temperature: what to divide the logits by for the highest likelihood of these labels; `None`
            where none is best, as `temperature_scaling` says.
        calibrated: the calibration with that temperature, on the same examples, hence a little
            better than on others; `None` without one.
    """

    classes: tuple[str, ...]
    logits: np.ndarray
    labels: np.ndarray
    confusion: np.ndarray
    scores: ClassScores
    most_confused: tuple[Confused, ...]
    top_losses: TopLosses
    calibration: Calibration
    temperature: float | None
    calibrated: Calibration | None

    def to_dict(self) -> dict[str, Any]:
        """All but the logits as JSON can hold them."""
        rows = zip(*(column.tolist() for column in self.top_losses), strict=True)
        return {
            "count": len(self.labels),
            **self.scores.to_dict(self.classes),
            "confusion": self.confusion.tolist(),
            "most_confused": [pair._asdict() for pair in self.most_confused],
            "top_losses": [
                {
                    "index": index,
                    "loss": loss,
                    "label": self.classes[self.labels[index]],
                    "prediction": self.classes[prediction],
                    "probability": probability,
                }
                for index, loss, prediction, probability in rows
            ],
            "calibration": self.calibration.to_dict(),
            "temperature": self.temperature,
            "calibrated": None if self.calibrated is None else self.calibrated.to_dict(),
        }


def interpret(
    model: Model, data: Any, *, top: int = 12, bins: int = 15, batch_size: int = 256
) -> Interpretation:
    """What a classifier does on labelled images, from one forward pass over them.

    `write_interpretation` makes a page of it.

    Args:
        model: a `Model` with one head.
        data: labelled images: `(images, labels)`, or a `Data`. Where it names its classes and the
            model does too, the names must be the model's, in its order; a model that knows them
            among others follows by `with_classes(model, data.classes)`.
        top: how many of the most frequent errors, and of the highest losses.
        bins: of confidence, for the calibration.
        batch_size: images that are computed at a time.

    Raises:
        DataError: there is no example, images or labels are not what they should be, a logit is not
            finite, or the names of the classes differ.

    Example:
        `jt.write_interpretation(jt.interpret(model, data), "runs/interpret", model, data)`
    """
    data = as_data(data)
    if not len(data):
        raise DataError("interpret: expected at least one example, found none")
    offset = model.preprocess.label_offset
    _check_classes(model, data.classes, offset)
    labels = np.asarray(data.labels)
    if isinstance(data.labels, dict) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            "interpret: expected one class an example, labels as integers of shape (count,); those "
            "of several tasks, several labels an example, and numbers have no confusion matrix"
        )
    logits, labels = check_answers(
        "interpret", predict(model, data, batch_size=batch_size), labels + offset
    )
    return interpret_logits(logits, labels, model.labels, top=top, bins=bins)


def interpret_logits(
    logits: Any, labels: Any, classes: Any = None, *, top: int = 12, bins: int = 15
) -> Interpretation:
    """`interpret` for logits that are there already, whatever gave them.

    Args:
        logits: shape (count, classes), such as a probe or a file gives them.
        labels: shape (count,), integers from 0.
        classes: the names of the classes; by default their numbers.
        top: as for `interpret`.
        bins: as for `interpret`.

    Raises:
        DataError: as `interpret` says.
    """
    scores, truth = check_answers("interpret", logits, labels)
    names = check_names("interpret", classes, scores.shape[1])
    matrix = confusion_matrix(scores, truth)
    temperature = best_temperature(scores, truth)
    return Interpretation(
        classes=names,
        logits=scores,
        labels=truth,
        confusion=matrix,
        scores=class_scores(matrix),
        most_confused=most_confused(matrix, names, top),
        top_losses=top_losses(scores, truth, top),
        calibration=calibration(scores, truth, bins=bins),
        temperature=temperature,
        calibrated=None
        if temperature is None
        else calibration(scores / temperature, truth, bins=bins),
    )


def with_classes(model: Model, classes: Sequence[str] | None) -> Model:
    """A model that answers with these classes alone, by the rows of its head that they have.

    Nothing is trained and nothing is drawn.

    Args:
        model: a `Model` whose head is one linear layer; it stays as it is.
        classes: names that the model knows, in any order. Where they or the model's are `None`, or
            both are the same, the model stays as it is.

    Raises:
        ModelError: the model does not know a class, or has another head.
    """
    known = model.labels
    if classes is None or known is None or tuple(classes) == known[model.preprocess.label_offset :]:
        return model
    missing = [name for name in classes if name not in known]
    chosen = model if missing else replace_head(model, classes=classes)
    if missing or f"{len(classes)} of {len(classes)} rows reused" not in chosen.receipt.notes[-1]:
        why = f"no {', '.join(missing[:5])} among its classes" if missing else "a head without rows"
        raise ModelError(
            f"{model.spec.name}: expected a model that knows the classes {_few(classes)}, found "
            f"{why}; fine-tune it on them first"
        )
    return chosen


def _check_classes(model: Model, classes: Any, offset: int) -> None:
    """Raise where data and model name their classes otherwise."""
    if classes is None or model.labels is None or isinstance(classes, dict):
        return
    known = model.labels[offset:]
    if tuple(classes) == known:
        return
    raise DataError(
        f"interpret: expected data of the model's classes {_few(known)}, found {_few(classes)}; "
        "with_classes(model, data.classes) is a model of these, where it knows them among others"
    )


def _few(names: Any) -> str:
    shown = ", ".join(map(str, names[:5]))
    return f"{shown}, … ({len(names)} in all)" if len(names) > 5 else shown
