# SPDX-License-Identifier: Apache-2.0
"""Media of a batch: pixels and tower features side by side."""

from __future__ import annotations

import torch
from toy import toy_processor, toy_sound, toy_video
from train_samples import calm_model, examples

from tdc.processor.media_inputs import load_image, load_video, pack_media
from tdc.train.data.collator import Collator, join_inputs


def test_packed_alone_and_joined_is_packed_together():
    config = calm_model().config
    media = [
        load_video(config, toy_video(4), toy_sound(1.0), 10),
        load_image(toy_video(1, (48, 24))[0]),
        load_video(config, toy_video(3), toy_sound(2.0), 10),
    ]
    for some in (media, media[1:2], media[1:]):
        wanted = pack_media(config, some)
        got = join_inputs([pack_media(config, [one]) for one in some])
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@torch.no_grad()
def test_features_and_pixels_keep_their_order():
    model = calm_model().eval()
    encoder, collator = model.video_encoder, Collator(toy_processor(model.config))
    pixels = [{"video": toy_video(n, seed=n), "question": "What?", "answer": "It."} for n in (5, 7)]
    features = [{**e, "question": "Who?"} for e in examples(2)]
    batch = collator([pixels[0], features[0], pixels[1], features[1]])["features"]
    assert [item is None for item in batch] == [True, False, True, False]
    encoded = batch.to("cpu").encode(encoder)
    assert encoded.cu_frames == (0, 5, 13, 20, 28)
    for number, example in enumerate([pixels[0], features[0], pixels[1], features[1]]):
        alone = collator([example])["features"].encode(encoder).visual
        rows = slice(*encoded.cu_frames[number : number + 2])
        final = encoded.visual.select(rows).final()
        torch.testing.assert_close(final, alone.final(), rtol=1e-4, atol=1e-5)
