"""Which leaves weight decay is for: kernels, and no biases, normalisations, tokens or positions."""

from __future__ import annotations

import re

from jaxtransfer.tree.names import SEPARATOR

_UNDECAYED = re.compile(
    r"b|g|(.*_)?(bias|scale|gamma|beta|token|tokens|probe)"
    r"|(.*_)?pos(ition)?_?emb(ed|edding|eddings)?|(.*_)?positional_embedding|layer_?scale\w*|ls\d*"
)


def is_decayed(name: str, ndim: int) -> bool:
    """Whether weight decay is for a leaf, by its name and by how many axes it has.

    It is for leaves of two axes at least: kernels of dense layers, of convolutions and of depthwise
    convolutions, and embeddings of a vocabulary. It is not for biases (those of attention that have
    an axis for the heads, and tables of relative positions, are biases too), for scales of
    normalisations and of residual branches, position embeddings, and tokens and probes that are
    learned: these are known by name, whatever their shape, so that a leading axis for the blocks of
    a scanned stage changes nothing.

    Source: https://github.com/huggingface/pytorch-image-models, `param_groups_weight_decay` (leaves
    of one axis, names that end in `.bias`) and `no_weight_decay` of its Vision Transformers and
    Swin; depthwise kernels are decayed there and in torchvision, while Howard et al. 2017 (arXiv
    1704.04861, section 3.2) decay them little or not at all: `Group("**/depthwise/kernel",
    weight_decay=0.0)`, with the names of your network, does that.

    Args:
        name: of the leaf; its last segment counts.
        ndim: the number of its axes, an axis for scanned blocks not counted where that is known.

    >>> is_decayed("block0/mlp/dense1/kernel", 2), is_decayed("blocks/norm1/scale", 2)
    (True, False)
    """
    return ndim > 1 and not _UNDECAYED.fullmatch(name.rpartition(SEPARATOR)[2].lower())
