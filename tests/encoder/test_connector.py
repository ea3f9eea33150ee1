# SPDX-License-Identifier: Apache-2.0
"""The spatial vision aggregator against a re-computation of single windows in fp64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tdc.checkpoints.release_names import connector_key_map
from tdc.encoder.connector import SVAConnector, frame_position_table
from tdc.encoder.geometry import Box, kept_box
from tdc.encoder.window_attention import absorbing_pays

UNITS = Path(__file__).parents[1] / "parity" / "data" / "units.npz"
SIGLIP, DINOV2, V, D, HEADS = 10, 6, 16, 20, 4


def make(query_grid=3, token_grids=(6, 3), **kwargs):
    """A small connector with every parameter random, norms included."""
    torch.manual_seed(0)
    kwargs = {"depth": 2, "num_heads": HEADS} | kwargs
    connector = SVAConnector(SIGLIP, DINOV2, V, D, query_grid, token_grids, **kwargs).eval()
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return connector


def inputs(frames, token_grids=(6, 3), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(frames, token_grids[0] ** 2, SIGLIP, generator=generator),
        torch.randn(frames, token_grids[1] ** 2, DINOV2, generator=generator),
    )


def norm(x, weight, bias):
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def expected_cell(connector, features, frame, row, col, keep):
    """One grid cell's token, from the formulas, one vector at a time, in fp64.

    ``keep(tower, r, c)`` says whether the tower's token may be attended.
    """
    p = {name: tensor.double() for name, tensor in connector.state_dict().items()}
    towers = []
    for i, tokens in enumerate(features):
        a = f"aux_projectors.{i}."
        towers.append(
            [
                norm(
                    p[a + "fc2.weight"]
                    @ gelu(p[a + "fc1.weight"] @ token.double() + p[a + "fc1.bias"])
                    + p[a + "fc2.bias"],
                    p[a + "norm.weight"],
                    p[a + "norm.bias"],
                )
                for token in tokens[frame]
            ]
        )
    context = torch.stack(towers[0]).mean(0)
    x = p["query"][0]
    for layer in range(len(connector.samplers[0])):
        w = f"samplers.0.{layer}."
        u = p[w + "mix.weight"] @ torch.cat([x, p[w + "context.weight"] @ context])
        normed = norm(u, p[w + "query_norm.weight"], p[w + "query_norm.bias"])
        query = p[w + "query.weight"] @ normed
        keys, values = [], []
        for i, grid in enumerate(connector.token_grids):
            k = grid // connector.query_grid
            t = f"{w}towers.{i}."
            for inner in range(k * k):
                r, c = row * k + inner // k, col * k + inner % k
                if not keep(i, r, c):
                    continue
                token = towers[i][r * grid + c]
                if k > 1:
                    token = token + p[t + "position"][inner]
                for out, kind in ((keys, "key"), (values, "value")):
                    n = norm(token, p[f"{t}{kind}_norm.weight"], p[f"{t}{kind}_norm.bias"])
                    out.append(p[f"{t}{kind}.weight"] @ n)
        dim = V // HEADS
        heads = []
        for h in range(HEADS):
            part = slice(h * dim, (h + 1) * dim)
            scores = torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(dim)
            weights = scores.exp() / scores.exp().sum()
            heads.append(sum(w_ * v[part] for w_, v in zip(weights, values, strict=True)))
        o = u + p[w + "out.weight"] @ torch.cat(heads)
        o = norm(o, p[w + "norm.weight"], p[w + "norm.bias"])
        x = x + p[w + "fc2.weight"] @ gelu(p[w + "fc1.weight"] @ o)
    hidden = gelu(p["projector.0.weight"] @ x + p["projector.0.bias"])
    return p["projector.2.weight"] @ hidden + p["projector.2.bias"]


@pytest.mark.parametrize("grids", [(6, 3), (6, 6), (3, 3)])
def test_cells_match_the_formulas(grids):
    connector, features = make(token_grids=grids), inputs(2, grids)
    with torch.no_grad():
        out = connector.grid_tokens(*features)
    for frame, row, col in ((0, 0, 0), (1, 1, 2)):
        expected = expected_cell(connector, features, frame, row, col, lambda *_: True)
        got = out[frame, row * 3 + col].double()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_masked_cells_match_the_formulas():
    grids = (12, 6)
    connector, features = make(token_grids=grids), inputs(1, grids)
    mask = connector.window_mask(300, 240)  # pads one of twelve rows on either side, none of six
    boxes = [kept_box(300, 240, grid) for grid in grids]
    assert boxes[0] == Box(1, 11, 0, 12)
    with torch.no_grad():
        out = connector.grid_tokens(*features, mask)
        plain = connector.grid_tokens(*features)

    def keep(tower, r, c):
        return boxes[tower].row0 <= r < boxes[tower].row1

    for row in range(3):
        expected = expected_cell(connector, features, 0, row, 1, keep)
        torch.testing.assert_close(out[0, row * 3 + 1].double(), expected, atol=1e-5, rtol=1e-5)
    assert (out - plain)[0, :3].abs().max() > 1e-3  # the first row of windows lost keys
    assert torch.equal(out[0, 3:6], plain[0, 3:6])  # the middle one did not


@pytest.mark.parametrize("masked", [False, True])
def test_absorbed_keys_and_values_change_nothing(masked, monkeypatch):
    """Outputs and gradients, in fp64."""
    connector, features = make(token_grids=(12, 6)).double(), inputs(2, (12, 6))
    features = [x.double().requires_grad_() for x in features]
    mask = connector.window_mask(300, 240) if masked else None
    found = []
    for absorbed in (True, False):
        monkeypatch.setattr(
            "tdc.encoder.window_attention.absorbing_pays", lambda query, way=absorbed: way
        )
        out = connector.grid_tokens(*features, mask)
        leaves = [*features, *connector.parameters()]
        weigh = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        found.append([out, *torch.autograd.grad(out, leaves, weigh, allow_unused=True)])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_absorbing_is_for_the_cpu_and_mostly_without_gradients():
    wide, narrow = torch.zeros(1, 4, 1024), torch.zeros(1, 4, 64)
    assert absorbing_pays(narrow) and not absorbing_pays(wide)
    with torch.no_grad():
        assert absorbing_pays(wide) and not absorbing_pays(wide.bfloat16())
        assert not absorbing_pays(wide.to("meta"))


def test_mask_is_none_where_nothing_is_masked():
    connector = make(token_grids=(12, 6))
    assert connector.window_mask(480, 480) is None
    assert connector.window_mask(300, 240) is not None


def test_chunks_and_masks_per_frame_change_nothing():
    grids = (12, 6)
    connector, features = make(token_grids=grids), inputs(5, grids)
    mask = connector.window_mask(300, 240)
    masks = torch.ones(5, *mask.shape, dtype=torch.bool)
    masks[3:] = mask
    with torch.no_grad():
        whole = connector.grid_tokens(*features, masks, chunk_size=None)
        chunked = connector.grid_tokens(*features, masks, chunk_size=2)
        plain = connector.grid_tokens(*(f[:3] for f in features))
        masked = connector.grid_tokens(*(f[3:] for f in features), mask)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(whole, torch.cat([plain, masked]), atol=1e-6, rtol=1e-6)


def test_no_frames():
    connector, features = make(), inputs(0)
    assert connector.grid_tokens(*features).shape == (0, 9, D)


@pytest.mark.parametrize("chunk_size", [1, 16])
def test_frame_tokens_are_cropped_and_rows_closed(chunk_size):
    grids = (8, 4)
    connector, features = make(query_grid=4, token_grids=grids).double(), inputs(2, grids)
    features = [x.double() for x in features]
    with torch.no_grad():
        tokens = connector(*features, (480, 240), chunk_size)
        grid = connector.grid_tokens(*features, connector.window_mask(480, 240))
        final = tokens.final()
    assert tokens.values.shape == (2, 10, 24) and final.shape == (2, 10, D)
    rows = final.unflatten(1, (2, 5))
    torch.testing.assert_close(rows[:, :, :4], grid.unflatten(1, (4, 4))[:, 1:3])
    newline = connector.image_newline.detach().expand(2, 2, D)
    torch.testing.assert_close(rows[:, :, 4], newline, atol=0, rtol=0)


def test_another_output_grid_resizes_before_the_projector():
    plain, resized = make(), make(output_grid=2)
    with torch.no_grad():
        for layer in (plain, resized):  # a linear projector commutes with the resize
            layer.projector[1] = torch.nn.Identity()
        cells = plain.grid_tokens(*inputs(1))[0].unflatten(0, (3, 3))  # [3, 3, D]
        out = resized.grid_tokens(*inputs(1))[0]
    # Two cells out of three: centres at 0.25 and 1.75, so weights (3/4, 1/4, 0) and (0, 1/4, 3/4).
    weights = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]])
    expected = torch.einsum("ar,bc,rcd->abd", weights, weights, cells).flatten(0, 1)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_query_groups_are_aggregators_side_by_side():
    double = make(num_query_group=2)
    features = inputs(1)
    singles = []
    for group in range(2):
        single = make()
        state = {k: v for k, v in double.state_dict().items() if not k.startswith("samplers.")}
        prefix = f"samplers.{group}."
        state |= {
            "samplers.0." + k.removeprefix(prefix): v
            for k, v in double.state_dict().items()
            if k.startswith(prefix)
        }
        state["query"] = double.query[group : group + 1]
        state["projector.0.weight"] = double.projector[0].weight[:, group * V : (group + 1) * V]
        single.load_state_dict(state)
        singles.append(single)
    caught = []
    for connector in (*singles, double):
        connector.projector[0].register_forward_hook(lambda _m, _i, out: caught.append(out))
        with torch.no_grad():
            connector.grid_tokens(*features)
    bias = double.projector[0].bias
    torch.testing.assert_close(caught[0] + caught[1] - bias, caught[2], atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter():
    connector = make(num_query_group=2)
    connector(*inputs(2), (9, 9), chunk_size=1).final().square().sum().backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_half_precision_stays_close():
    connector, features = make(), inputs(2)
    with torch.no_grad():
        exact = connector.grid_tokens(*features)
        rounded = connector.bfloat16().grid_tokens(*(f.bfloat16() for f in features))
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("query_grid", "token_grids", "groups"), [(12, (24, 24), 1), (24, (24, 24), 1), (3, (6, 3), 2)]
)
def test_release_keys_name_every_tensor_once(query_grid, token_grids, groups):
    keys = connector_key_map(query_grid, token_grids, depth=2, num_query_group=groups)
    connector = SVAConnector(
        8, 8, 16, 8, query_grid, token_grids, depth=2, num_heads=2, num_query_group=groups
    )
    assert sorted(keys.values()) == sorted(connector.state_dict())


def test_release_keys_are_the_published_names():
    keys = connector_key_map()
    layer = "model.vision_sampler_0.layers.2."
    for theirs, ours in {
        "model.vision_query": "query",
        "model.image_newline": "image_newline",
        "model.mm_projector.2.bias": "projector.2.bias",
        "model.mm_projector_aux_1.3.weight": "aux_projectors.1.norm.weight",
        layer + "pos_embed_1": "samplers.0.2.towers.1.position",
        layer + "proj_context.weight": "samplers.0.2.context.weight",
        layer + "proj_in.weight": "samplers.0.2.mix.weight",
        layer + "cross_attn.q_proj.0.bias": "samplers.0.2.query_norm.bias",
        layer + "cross_attn.k_proj_0.1.weight": "samplers.0.2.towers.0.key.weight",
        layer + "cross_attn.v_proj_1.0.weight": "samplers.0.2.towers.1.value_norm.weight",
        layer + "proj_out.linear_2.weight": "samplers.0.2.fc2.weight",
    }.items():
        assert keys[theirs] == ours
    assert len(keys) == 90
    assert not any("pos_embed" in name for name in connector_key_map(query_grid=24))


def test_position_vectors_of_the_release_are_the_recorded_ones():
    units = np.load(UNITS)
    times = torch.from_numpy(units["frame_pos_t"])
    for name, width in (("frame_pos_out", 64), ("frame_pos_out_D96", 96)):
        ours = frame_position_table(times, width, "release").numpy()
        np.testing.assert_allclose(ours, units[name], atol=5e-7)


def test_position_vectors():
    table = frame_position_table(torch.tensor([0, 3]), 7)
    assert table.shape == (2, 7) and table.dtype == torch.float32
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1, 0]
    angle = 3 / 10000 ** (2 / 7)
    assert table[1, 2:4].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)
    with pytest.raises(ValueError, match='mode must be "sinusoidal" or "release", got \'learned\''):
        frame_position_table(torch.tensor([0]), 8, "learned")


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="num_heads must divide hidden_size 16, got 3"):
        make(num_heads=3)
    with pytest.raises(ValueError, match="query_grid must divide the token grid 6, got 4"):
        make(query_grid=4)
    siglip, dinov2 = inputs(2)
    with pytest.raises(ValueError, match="dinov2 must have siglip's 2 frames, got 1"):
        make().grid_tokens(siglip, dinov2[:1])
    with pytest.raises(ValueError, match="tokens must have 36 rows"):
        make().grid_tokens(siglip[:, :30], dinov2)


def test_one_map_for_all_frames_until_a_weight_changes():
    connector = make()
    with torch.no_grad():
        before = connector.token_map()
        assert connector.token_map() is before
        connector.image_newline.add_(1)
        assert (connector.token_map() - before).abs().max() == 1
        assert connector.token_map().requires_grad is False
    first, second = connector.token_map(), connector.token_map()
    assert first.requires_grad and first is not second  # each with a graph of its own
