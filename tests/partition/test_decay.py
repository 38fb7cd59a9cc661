from __future__ import annotations

import pytest

from jaxtransfer.models.catalog import build
from jaxtransfer.partition.decay import is_decayed
from jaxtransfer.tree import named_leaves


@pytest.mark.parametrize(
    ("network", "options", "undecayed"),
    [
        ("mobilenet_v2_035", {}, {"bias", "scale"}),
        ("convnextv2_atto", {}, {"bias", "scale"}),
        (
            "dinov2_s14_reg",
            {"depth": 2},
            {"bias", "scale", "class_token", "register_tokens", "position_embedding"},
        ),
        (
            "vit_ti16",
            {"depth": 2, "scan": True},
            {"bias", "scale", "class_token", "position_embedding"},
        ),
        ("siglip_b16", {"depth": 1}, {"bias", "scale", "position_embedding", "probe"}),
        ("swin_t", {}, {"bias", "scale", "relative_position_bias"}),
    ],
)
def test_kernels_alone_are_decayed(network: str, options: dict, undecayed: set[str]) -> None:
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for name, leaf in named_leaves(build(network, **options).params):
        found[is_decayed(name, leaf.ndim)].add(name.rpartition("/")[2])
    assert found == {True: {"kernel"}, False: undecayed}


@pytest.mark.parametrize(
    ("name", "ndim", "expected"),
    [
        ("attention/query/bias", 2, False),  # with an axis for the heads
        ("blocks/norm/weight", 1, False),
        ("layers/0/weight", 2, True),
        ("embed/embedding", 2, True),
        ("embeddings/pos_embed", 3, False),
        ("Transformer/posembed_input/pos_embedding", 3, False),
        ("cls_token", 3, False),
        ("blocks/ls1/gamma", 2, False),
        ("blocks/layer_scale_1", 2, False),
        ("depthwise/kernel", 4, True),
        ("tokenizer/kernel", 2, True),
        ("biased", 2, True),
    ],
)
def test_names_of_other_libraries_are_known(name: str, ndim: int, expected: bool) -> None:
    assert is_decayed(name, ndim) is expected
