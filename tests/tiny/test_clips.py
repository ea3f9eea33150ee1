# SPDX-License-Identifier: Apache-2.0
"""Clips are the same for the same seed, keep to their split, and follow their kind."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from tdc.errors import InputError
from tiny.world import KINDS, SPLITS, UNITS, make_clip, render_frames, render_sound, split_of
from tiny.world.clips import Clip
from tiny.world.make import STYLES
from tiny.world.splits import looks
from tiny.world.words import BACKGROUNDS, COLORS, SHAPES


def clips(count: int, kind: str = "standard", split: str = "train") -> list[Clip]:
    return [make_clip(0, i, kind=kind, split=split) for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_clip(kind: str) -> None:
    first, again = make_clip(3, 7, kind=kind), make_clip(3, 7, kind=kind)
    assert first == again
    np.testing.assert_array_equal(render_frames(first), render_frames(again))
    np.testing.assert_array_equal(render_sound(first), render_sound(again))
    others = [make_clip(4, 7, kind=kind), make_clip(3, 8, kind=kind)]
    others.append(make_clip(3, 7, kind=kind, split="test"))
    assert all(first.scenes != other.scenes for other in others)


def test_what_seeds_mean_stays() -> None:
    """A change of this clip changes every data set: count up dataset._VERSION then."""
    clip = make_clip(0, 0)
    assert [(s.background, s.texture, s.num_frames) for s in clip.scenes] == [("olive", "dots", 3)]
    assert clip.sounds == ("beep", "noise", "beep")


@pytest.mark.parametrize("kind", KINDS)
def test_clips_follow_their_kind(kind: str) -> None:
    style = STYLES[kind]
    seen = clips(120, kind)
    assert {len(c.scenes) for c in seen} == set(range(style.scenes[0], style.scenes[1] + 1))
    lengths = {s.num_frames for c in seen for s in c.scenes}
    assert lengths == set(range(style.frames[0], style.frames[1] + 1))
    for clip in seen:
        assert clip.num_frames == sum(s.num_frames for s in clip.scenes) == len(clip.sounds)
        assert clip.cuts == clip.starts[1:] and clip.starts[0] == 0
        assert all(a.background != b.background for a, b in pairwise(clip.scenes))
        grounds = [(s.background, s.texture) for s in clip.scenes]
        assert len(set(grounds)) == len(grounds)


def test_held_out_combinations_never_meet() -> None:
    seen = {
        split: {c for kind in KINDS for clip in clips(250, kind, split) for c in clip.combinations}
        for split in SPLITS
    }
    for split, combinations in seen.items():
        assert {split_of(*c) for c in combinations} == {split}
    assert {split: len(c) for split, c in seen.items()} == {
        "train": 120,
        "validation": 30,
        "test": 30,
    }


def test_every_pair_is_in_training() -> None:
    values = (SHAPES, tuple(COLORS), tuple(BACKGROUNDS))
    train = [c for c in product(*values) if split_of(*c) == "train"]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert {(c[i], c[j]) for c in train} == set(product(values[i], values[j]))
    for split in SPLITS:
        held = [c for c in product(*values) if split_of(*c) == split]
        for i in range(3):
            assert {c[i] for c in held} == set(values[i])
        for background in BACKGROUNDS:  # enough for two objects, a flash and another color
            assert len({color for _, color in looks(split, background)}) >= 4


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_as_described(split: str) -> None:
    for kind in ("standard", "motion", "fast-cut"):
        for scene in (s for c in clips(150, kind, split) for s in c.scenes):
            colors = [color for t in scene.things for _, color in t.looks]
            assert len({*colors}) >= len(scene.things)  # told apart by color alone
            assert all(f.last == f.first + 1 and f.first >= 1 for f in scene.flashes)
            assert len({f.first for f in scene.flashes}) == len(scene.flashes)
            for thing in scene.objects:
                assert 0 <= thing.first < thing.last <= scene.num_frames
                points = [point for _, point in thing.path]
                ways = [np.abs(np.subtract(b, a)).max() for a, b in pairwise(points)]
                assert all(way >= 40 for way in ways)  # of 64: a direction that shows
                assert thing.size * 2 <= UNITS / 2
            for k in range(scene.num_frames):
                places = [t.position(k) for t in scene.visible(k)]
                for a, b in ((a, b) for a in places for b in places if a is not b):
                    assert max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 16  # nobody hides another


def test_first_frame_hides_where_objects_go() -> None:
    """The best guess from a corner is wrong more often than right."""
    ways: dict[tuple[bool, bool], dict[str, int]] = {}
    for scene in (s for c in clips(1500) for s in c.scenes):
        for thing in scene.objects:
            if thing.visible(0) and thing.last == scene.num_frames:
                x, y = thing.position(0)
                count = ways.setdefault((x < 32, y < 32), {})
                way = "".join(thing.legs)
                count[way] = count.get(way, 0) + 1
    assert len(ways) == 4
    for count in ways.values():
        assert max(count.values()) < 0.5 * sum(count.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "odd"}, "kind: got 'odd', expected one of standard, slow, fast-cut, motion"),
        ({"split": "dev"}, "split: got 'dev', expected one of train, validation, test"),
        ({"scenes": 0}, "scenes: got 0, expected 1 to 24"),
        ({"scenes": (3, 25)}, r"scenes: got \(3, 25\), expected 1 to 24"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_clip(0, 0, **arguments)  # type: ignore[arg-type]
