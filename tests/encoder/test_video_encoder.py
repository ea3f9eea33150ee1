# SPDX-License-Identifier: Apache-2.0
"""The encoder's two halves: towers to ``TowerFeatures``, and those to ``VideoFeatures``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy import toy_config, toy_model, toy_sound, toy_video

from tdc.encoder.connector import frame_position_table
from tdc.encoder.tower_features import TowerFeatures
from tdc.encoder.video_encoder import _join
from tdc.encoder.visual_tokens import VisualTokens
from tdc.processor.media_inputs import MEDIA_INPUTS


def medium(frames, size=(9, 9), seed=0, is_video=True, audio=False):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(frames, 64, 40, generator=generator)
    sound = torch.randn(frames, 6, 16, generator=generator) if audio else None
    return TowerFeatures(tokens[..., :16], tokens[..., 16:], size, audio=sound, is_video=is_video)


@torch.no_grad()
def test_towers_make_one_entry_per_medium(model, processor):
    inputs = processor(
        text="<video> <image> <video>",
        videos=[toy_video(5), toy_video(3, (48, 24))],
        images=[toy_video(1)[0]],
        audio=[toy_sound(2.0), False],
    )
    media = {name: inputs[name] for name in MEDIA_INPUTS if name in inputs}
    encoder = model.video_encoder
    made = encoder.towers(**media)
    assert [(len(m), m.size, m.is_video) for m in made] == [
        (5, (24, 24), True),
        (1, (24, 24), False),
        (3, (48, 24), True),
    ]
    assert made[0].times == [0.0, 1.0, 2.0, 3.0, 4.0] and made[0].audio.shape == (5, 6, 16)
    assert made[1].audio is None and made[2].audio is None
    torch.testing.assert_close(made[2].siglip, encoder.siglip(inputs["siglip_pixels"][-3:]))
    one, other = encoder.connect(made), model.encode_video(**inputs)
    assert torch.equal(one.visual.values, other.visual.values)
    assert one.times == other.times and one.kinds == ("video", "image", "video")


@torch.no_grad()
def test_media_of_one_kind_and_size_share_a_call(model, monkeypatch):
    encoder, calls = model.video_encoder, []
    forward = encoder.connector.forward

    def counting(siglip, dinov2, size, chunk_size):
        calls.append((len(siglip), size))
        return forward(siglip, dinov2, size, chunk_size)

    monkeypatch.setattr(encoder.connector, "forward", counting)
    media = [
        medium(4, audio=True),
        medium(1, is_video=False, seed=1),
        medium(3, (18, 9), seed=2),
        medium(5, seed=3),
        medium(1, is_video=False, seed=4),
    ]
    together = encoder.connect(media)
    assert calls == [(9, (9, 9)), (2, (9, 9)), (3, (18, 9))]
    alone = [encoder.connect([one]) for one in media]
    final = torch.cat([a.visual.final() for a in (alone[0], alone[3])])
    assert together.visual_lengths == (20,) * 4 + (10,) * 3 + (20,) * 5
    torch.testing.assert_close(together.visual.final()[[0, 1, 2, 3, 7, 8, 9, 10, 11]], final)
    torch.testing.assert_close(together.visual.final()[4:7, :10], alone[2].visual.final())
    assert together.visual.values[4:7, 10:].abs().max() == 0
    for ours, one in zip(together.images, (alone[1], alone[4]), strict=True):
        torch.testing.assert_close(ours, one.images[0])
    assert together.audio_lengths == (6,) * 4 + (0,) * 8
    assert torch.equal(together.audio[:4], media[0].audio) and together.audio[4:].abs().max() == 0
    assert together.segmentation.scene_starts(2) == alone[3].segmentation.scene_starts()


@torch.no_grad()
def test_frame_positions_are_added_to_the_newline_too(model):
    placed = toy_model(toy_config(frame_positions="sinusoidal")).video_encoder
    placed.load_state_dict(model.video_encoder.state_dict())
    media = [medium(3), medium(2, seed=1)]
    plain = model.video_encoder.connect(media).visual.final()
    visual = placed.connect(media).visual
    table = frame_position_table(torch.tensor([0, 1, 2, 0, 1]), 32)
    assert visual.token_map is None
    torch.testing.assert_close(visual.values - plain, table[:, None].expand_as(plain))


def test_a_model_without_sound_leaves_sound_out():
    deaf = toy_model(toy_config(audio_config=None)).video_encoder
    features = deaf.connect([medium(3, audio=True)])
    assert features.audio is None and features.audio_lengths == ()


def test_tower_features_of_other_shapes_are_refused():
    one = medium(3)
    for change in ({"siglip": one.siglip[:2]}, {"siglip": one.siglip[0], "dinov2": one.dinov2[0]}):
        with pytest.raises(Exception, match=r"expected \[F, tower_grid\*\*2, C\]"):
            replace(one, **change)


def test_visual_tokens():
    values, token_map = torch.randn(4, 3, 8), torch.randn(5, 8)
    mapped, final = VisualTokens(values, token_map), values @ token_map.T
    torch.testing.assert_close(mapped.final(), final)
    torch.testing.assert_close(mapped.final(torch.tensor([3, 1])), final[[3, 1]])
    assert mapped.final(dtype=torch.float64).dtype == torch.float64
    assert VisualTokens(final).final() is final
    torch.testing.assert_close(mapped.apply_map(values.mean(1)), final.mean(1))
    long = VisualTokens(torch.randn(2, 4, 8), token_map)
    joined = VisualTokens.join([mapped, long])
    assert joined.token_map is token_map and joined.values[:4, 3:].abs().max() == 0
    assert torch.equal(joined.select(slice(4, 6)).values, long.values)
    assert torch.equal(joined.values[:4, :3], values)


def test_parts_of_one_tensor_are_joined_without_a_copy():
    whole = torch.randn(9, 4, 3)
    a, b, c = whole.split([2, 3, 4])
    for parts, count in (((a, b, c), 9), ((a, b), 5), ((a,), 2)):
        joined = _join(parts)
        assert torch.equal(joined, whole[:count]) and joined.data_ptr() == whole.data_ptr()
    for parts in ((a, c), (b, a), (b, c, a), (whole[:2, :, :2], whole[2:, :, :2]), (a, a)):
        assert torch.equal(_join(parts), torch.cat(parts))
    trained = whole.clone().requires_grad_()
    _join(trained.split([4, 5])).sum().backward()
    assert torch.equal(trained.grad, torch.ones_like(whole))
