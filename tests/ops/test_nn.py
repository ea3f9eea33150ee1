# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

import tdc_kernels as tk
from tdc_kernels.nn import AnchorQueries, CrossAttention, SceneSegmenter


def test_scene_segmenter():
    features, cu = torch.randn(9, 4), torch.tensor([0, 4, 9])
    boundaries, similarity = SceneSegmenter(3, threshold=0.5)(features, cu)
    wanted = tk.segment_scenes(features, 2, cu, 0.5)
    assert torch.equal(boundaries, wanted[0])
    assert torch.equal(similarity, wanted[1])
    assert SceneSegmenter(1)(features)[0].shape == (1, 0)
    with pytest.raises(ValueError, match="num_scenes: expected an integer >= 1, got 0"):
        SceneSegmenter(0)


def test_anchor_queries():
    tokens, index = torch.randn(5, 9, 6), torch.tensor([3, 0])
    layer = AnchorQueries(6, 4, 3)
    torch.testing.assert_close(
        layer(tokens, index),
        layer.weight.new_tensor(0)
        + torch.nn.functional.linear(
            tk.anchor_queries(tokens, 3, index=index), layer.weight, layer.bias
        ),
    )
    assert AnchorQueries(6, 4, 3, bias=False)(tokens).shape == (5, 3, 4)


def test_cross_attention_is_torchs_over_joined_tokens():
    layer = CrossAttention(8, 8, 2)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    parts = (layer.query, layer.key, layer.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        theirs.out_proj.load_state_dict(layer.out.state_dict())
    x, visual, audio = torch.randn(3, 4, 8), torch.randn(3, 5, 8), torch.randn(3, 2, 8)
    tokens = torch.cat([visual, audio], 1)
    torch.testing.assert_close(layer(x, visual, audio), theirs(x, tokens, tokens)[0])


@pytest.mark.parametrize("how", [torch.bfloat16, torch.float16, "autocast"], ids=str)
def test_cross_attention_compiles_in_half_precision(how):
    torch._dynamo.reset()
    dtype = torch.float32 if how == "autocast" else how
    layer = CrossAttention(8, 6, 2).to(dtype)
    x, visual = torch.randn(3, 4, 8, dtype=dtype), torch.randn(3, 5, 6, dtype=dtype)
    with torch.autocast("cpu", enabled=how == "autocast"):
        got = torch.compile(layer, fullgraph=True, backend="eager")(x, visual)
        torch.testing.assert_close(got, layer(x, visual), rtol=0.02, atol=0.02)
