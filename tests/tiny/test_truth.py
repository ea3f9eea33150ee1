# SPDX-License-Identifier: Apache-2.0
"""What a clip says is what its pixels and samples show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tdc.encoder.fbank import SAMPLE_RATE
from tdc.errors import InputError
from tiny.world import (
    KINDS,
    Clip,
    boundary_scores,
    make_clip,
    patch_labels,
    render_frame,
    render_frames,
    render_sound,
)
from tiny.world.sounds import BEGIN, END, one_second
from tiny.world.words import BACKGROUNDS, COLORS, SHAPES, SOUNDS, TEXTURES

THRESHOLD = 0.7  # cosine of mean colors of patches, below which a pair of frames is a cut


def pure_pixels(frame: np.ndarray, color: str) -> int:
    """Pixels that have exactly an object color."""
    return int((frame == np.array(COLORS[color], dtype=np.uint8)).all(axis=-1).sum())


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    kinds = [kind for kind in KINDS if kind != "long"]
    return [make_clip(11, i, kind=kind) for kind in kinds for i in range(25)]


def test_colors_are_on_screen_when_they_should_be(clips: list[Clip]) -> None:
    """Of every color, in every frame: an object's area of it, or not a pixel.

    Objects on their way over the edge show a part, and do not count while the centre is outside.
    """
    flashes = 0
    for clip in clips:
        frames = render_frames(clip)
        for k, frame in enumerate(frames):
            number, time = clip.locate(k)
            scene = clip.scenes[number]
            there = {thing.color_at(time) for thing in scene.visible(time)}
            half = {t.color_at(time) for t in scene.things if t.first <= time < t.last} - there
            flashes += sum(thing.flash for thing in scene.visible(time))
            for color in set(COLORS) - half:
                pixels = pure_pixels(frame, color)
                assert (pixels >= 15) if color in there else pixels == 0, (clip.name, k, color)
    assert flashes > 100


def test_objects_are_where_they_should_be(clips: list[Clip]) -> None:
    for clip in clips:
        for k, frame in enumerate(render_frames(clip)):
            number, time = clip.locate(k)
            for thing in clip.scenes[number].visible(time):
                color = np.array(COLORS[thing.color_at(time)], dtype=np.uint8)
                rows, columns = np.nonzero((frame == color).all(axis=-1))
                x, y = columns.mean() + 0.5, rows.mean() + 0.5
                at = thing.position(time)
                if not all(8 <= v <= 56 for v in at):
                    continue  # cut off by the edge
                # A triangle's and a star's centre of mass lies up to a tenth of its size lower.
                assert abs(x - at[0]) < 1 and abs(y - at[1]) < 3.5, (clip.name, k, thing)


def test_shapes_can_be_told_apart() -> None:
    """The masks of two shapes at one place differ in at least an eighth of their pixels."""
    clip = make_clip(0, 0)
    scene = clip.scenes[0]
    thing = replace(scene.things[0], path=((0.0, (32.0, 32.0)),), first=0, last=9, recolor=None)
    masks = []
    for shape in SHAPES:
        frame = render_frame(replace(scene, things=(replace(thing, shape=shape),)), 0)
        empty = render_frame(replace(scene, things=()), 0)
        masks.append((frame != empty).any(axis=-1))
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert (a ^ b).sum() > (a | b).sum() / 8


def test_background_is_the_scene_s(clips: list[Clip]) -> None:
    for clip in clips:
        for k, frame in enumerate(render_frames(clip)):
            scene = clip.scenes[clip.locate(k)[0]]
            tones = [
                (frame == np.array(tone)).all(axis=-1) for tone in BACKGROUNDS[scene.background]
            ]
            share = (tones[0] | tones[1]).mean()
            assert share > 0.5
            assert tones[1].any() == (scene.texture != "plain")


@pytest.mark.parametrize("size", [16, 64, 224])
def test_any_size_shows_the_same(size: int) -> None:
    clip = make_clip(5, 1)
    small, large = render_frames(clip, size), render_frames(clip, 2 * size)
    halved = large.reshape(len(large), size, 2, size, 2, 3).mean(axis=(2, 4))
    assert np.abs(small - halved).mean() < 4


def test_frames_between_the_seconds() -> None:
    clip = make_clip(5, 2)
    np.testing.assert_array_equal(render_frames(clip, fps=4)[::4], render_frames(clip))


def test_sound_is_in_its_seconds() -> None:
    heard = 0
    for i in range(60):
        clip = make_clip(2, i)
        wave = render_sound(clip)
        assert wave.dtype == np.float32 and wave.shape == (clip.num_frames * SAMPLE_RATE,)
        for second, sound in zip(wave.reshape(-1, SAMPLE_RATE), clip.sounds, strict=True):
            inside = second[round(BEGIN * SAMPLE_RATE) : round(END * SAMPLE_RATE)]
            if sound is None:
                assert not second.any()
                continue
            heard += 1
            assert 0.09 < np.sqrt((inside**2).mean()) < 0.16
            assert np.square(second).sum() == pytest.approx(np.square(inside).sum())
            alike = {name: _likeness(second, name) for name in SOUNDS}
            assert max(alike, key=lambda name: alike[name]) == sound, (clip.name, sound, alike)
    assert heard > 200


def _likeness(second: np.ndarray, sound: str) -> float:
    """Best cosine of magnitude spectrograms over the three pitches."""
    ours = _spectrum(second)
    return max(float((ours * _spectrum(one_second(sound, p))).sum()) for p in (0.9, 1.0, 1.1))


def _spectrum(second: np.ndarray) -> np.ndarray:
    power = np.abs(np.fft.rfft(second.reshape(-1, 400), axis=1))
    return power / np.linalg.norm(power)


def test_flash_and_its_sound_share_a_second() -> None:
    count = 0
    for i in range(100):
        for scene in make_clip(8, i).scenes:
            for flash in scene.flashes:
                if flash.sound is not None:
                    count += 1
                    assert scene.sounds[flash.first] == flash.sound
    assert count > 100


@pytest.mark.parametrize("grid", [4, 8])
def test_patch_labels(clips: list[Clip], grid: int) -> None:
    colors, shapes = tuple(COLORS), tuple(SHAPES)
    for clip in clips[::5]:
        frames = render_frames(clip)
        for k in range(clip.num_frames):
            labels = patch_labels(clip, k, grid)
            scene = clip.scenes[clip.locate(k)[0]]
            assert (labels.background == tuple(BACKGROUNDS).index(scene.background)).all()
            assert (labels.texture == TEXTURES.index(scene.texture)).all()
            found = {(shapes[s - 1], colors[c - 1]) for s, c in _pairs(labels) if s}
            assert found == {(shape, color) for shape, color, _, _ in labels.objects}
            centers = {tuple(c) for c in labels.centers[labels.shape > 0].round(4).tolist()}
            assert len(centers) == len(labels.objects)
            for value, patch in zip(labels.color.flat, _patches(frames[k], grid), strict=True):
                if value:
                    assert pure_pixels(patch, colors[value - 1]) > 0 or grid == 8


def _pairs(labels) -> set[tuple[int, int]]:
    return set(zip(labels.shape.flat, labels.color.flat, strict=True))


def _patches(frame: np.ndarray, grid: int) -> np.ndarray:
    side = len(frame) // grid
    parts = frame.reshape(grid, side, grid, side, 3).transpose(0, 2, 1, 3, 4)
    return parts.reshape(grid * grid, side, side, 3)


@pytest.mark.parametrize("kind", ["standard", "slow", "fast-cut", "motion", "long"])
def test_cuts_stand_out(kind: str) -> None:
    """Mean colors of 8 x 8 patches find every cut at one threshold; events stay above it."""
    total = boundary_scores([], [])
    cuts, rest = [], []
    for i in range(40):
        clip = make_clip(1, i, kind=kind)
        frames = render_frames(clip).astype(np.float64)
        patches = frames.reshape(len(frames), 8, 8, 8, 8, 3).mean(axis=(2, 4))
        features = (patches / 255 - (0.485, 0.456, 0.406)).reshape(len(frames), -1)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        similarity = (features[1:] * features[:-1]).sum(axis=1)
        found = np.nonzero(similarity < THRESHOLD)[0] + 1
        total += boundary_scores(found.tolist(), clip.cuts)
        is_cut = np.isin(np.arange(1, len(frames)), clip.cuts)
        cuts += similarity[is_cut].tolist()
        rest += similarity[~is_cut].tolist()
        if clip.cuts:  # the lowest of each clip, as the model looks for them
            assert similarity[is_cut].max() < similarity[~is_cut].min()
    if kind == "motion":  # one take: nothing to find
        assert np.mean(np.array(rest) < THRESHOLD) < 0.03 and not cuts
    else:
        assert total.f1 > 0.98, (max(cuts), min(rest))


def test_boundary_scores() -> None:
    one = boundary_scores([3, 7, 9], [3, 8])
    assert (one.correct, one.found, one.true) == (1, 3, 2)
    assert (one.precision, one.recall, one.f1) == (1 / 3, 1 / 2, 0.4)
    both = one + boundary_scores([5], [5])
    assert (both.precision, both.recall) == (2 / 4, 2 / 3)
    nothing = boundary_scores([], [])
    assert (nothing.precision, nothing.recall, nothing.f1) == (1, 1, 1)
    assert boundary_scores([], [4]).f1 == 0 == boundary_scores([4], []).f1


def test_bad_arguments() -> None:
    clip = make_clip(0, 0)
    with pytest.raises(InputError, match="size: got 8, expected 16 pixels or more"):
        render_frames(clip, 8)
    with pytest.raises(InputError, match="fps: got 0, expected 1 or more"):
        render_frames(clip, fps=0)
    with pytest.raises(InputError, match=f"frame: got 99, expected 0 to {clip.num_frames - 1}"):
        patch_labels(clip, 99, 8)
    with pytest.raises(InputError, match="grid: got 0, expected 1 or more"):
        patch_labels(clip, 0, 0)
