"""What every family needs to cut its forward pass at the entrance of a stage."""

from __future__ import annotations

from jaxtransfer.errors import ModelError


def stages_between(stages: tuple[str, ...], start: str | None, stop: str | None) -> tuple[str, ...]:
    """The stages from `start` on, and before `stop`.

    Args:
        stages: all stages from input to head.
        start: the first stage that runs; by default the first of all.
        stop: the stage before which the forward pass ends; by default it runs to the end.

    Raises:
        ModelError: there are no such stages, or `start` comes after `stop`.

    >>> stages_between(("stem", "layer1", "head"), start="layer1", stop=None)
    ('layer1', 'head')
    """
    unknown = [stage for stage in (start, stop) if stage is not None and stage not in stages]
    if unknown:
        raise ModelError(f"start, stop: expected stages among {', '.join(stages)}, found {unknown}")
    first = 0 if start is None else stages.index(start)
    last = len(stages) if stop is None else stages.index(stop)
    if first > last:
        raise ModelError(f"expected start before stop, found {start!r} after {stop!r}")
    return stages[first:last]


def check_sizes(name: str, num_classes: int, **sizes: int) -> None:
    """Raise unless all sizes are integers of at least 1; `num_classes` may be 0, for no head.

    Raises:
        ModelError: some are not.

    >>> check_sizes("resnet18", num_classes=10, width=64)
    """
    wrong = {key: size for key, size in sizes.items() if not isinstance(size, int) or size < 1}
    if not isinstance(num_classes, int) or num_classes < 0:
        wrong["num_classes"] = num_classes
    if wrong:
        raise ModelError(
            f"{name}: expected integers of at least 1 (num_classes may be 0, for no head), "
            f"found {wrong}"
        )


def check_rates(name: str, **rates: float) -> None:
    """Raise unless all rates of dropout and the like are at least 0 and below 1.

    Raises:
        ModelError: some are not.

    >>> check_rates("vgg16", dropout=0.5)
    """
    wrong = {key: rate for key, rate in rates.items() if not 0 <= rate < 1}
    if wrong:
        raise ModelError(f"{name}: expected rates of at least 0 and below 1, found {wrong}")
