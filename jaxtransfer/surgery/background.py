"""Leave out the outputs that no label counts, such as TensorFlow's background class."""

from __future__ import annotations

from dataclasses import replace

from jaxtransfer.errors import ModelError
from jaxtransfer.surgery.network import AnyModel, compute, with_option
from jaxtransfer.tree import flatten, is_below, with_subtree


def drop_background(model: AnyModel) -> AnyModel:
    """A model whose output 0 is that of label 0; all leaves outside the head are the same arrays.

    Networks of TensorFlow with 1001 classes have a background before the 1,000 of ImageNet, and
    `model.preprocess.label_offset` says so. Their columns of kernel and bias are left out here.

    Args:
        model: a `Model`; it stays as it is.

    Returns:
        The model itself where its outputs begin with label 0.

    Raises:
        ModelError: nothing at the head's path has as many columns as there are outputs.

    Example:
        `drop_background(jt.load("inception_v3", "inception_v3.ckpt"))`
    """
    offset, outputs, head = model.preprocess.label_offset, model.num_classes, model.spec.head
    if not offset:
        return model
    leaves = {
        path: leaf
        for path, leaf in flatten(model.params).items()
        if is_below(path, {head}) and leaf.shape[-1:] == (outputs,)
    }
    if not leaves:
        raise ModelError(
            f"drop_background({model.spec.name}): expected weights with {outputs} columns at "
            f"{head!r}, found none; replace_head makes a head for other classes"
        )
    params = model.params
    for path, leaf in leaves.items():
        params = with_subtree(params, path, compute(lambda values: values[..., offset:], leaf))
    changed = with_option(model, "num_classes", outputs, outputs - offset)
    note = f"drop_background: {head} has {outputs - offset} outputs instead of {outputs}"
    return replace(
        changed,
        params=params,
        preprocess=replace(model.preprocess, label_offset=0),
        labels=None if model.labels is None else model.labels[offset:],
        receipt=model.receipt.with_note(note),
    )
