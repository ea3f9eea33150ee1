# SPDX-License-Identifier: Apache-2.0
"""LLaVA-style lists: what is taken, and what is wrong with the rest, by name."""

from __future__ import annotations

import json
import logging

import pytest
from clips import write_clip
from toy import toy_processor, toy_video
from train_samples import calm_config, record, write_list

from tdc import InputError
from tdc.processor.video_sampling import VideoSampling
from tdc.train.data.collator import Collator
from tdc.train.data.records import parse, read_records

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
WITHOUT = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It."}]


def test_a_list_of_pictures_videos_and_text(media_dir):
    records = read_records([media_dir / "images.json", media_dir / "sounds.json"], media_dir)
    assert [r.kind for r in records] == ["image", "image", None, "image"] + ["video"] * 4
    assert records[0].visual == str(media_dir / "a.png")
    assert records[5].sound == str(media_dir / "tone.mp4") and records[4].sound is None
    assert [r.number for r in records] == list(range(8))
    # <image> stands for a video as well, and leaves no trace in the text.
    assert records[-1].turns[0].text == "How many?"


def test_json_lines(tmp_path, media_dir):
    lines = [record("One?", "1.", image="a.png"), record("Two?", "2.", mark="")]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    assert len(read_records([file], media_dir)) == 2


def test_turns_of_a_conversation():
    turns = [
        {"from": "human", "value": "First?"},
        {"from": "gpt", "value": " Yes. "},
        {"from": "human", "value": "And <video>\nthen?<audio>"},
        {"from": "gpt", "value": "No."},
    ]
    made = parse({"video": "v.mp4", "conversations": turns}, "folder")
    assert [(t.role, t.text) for t in made.turns] == [
        ("user", "First?"),
        ("assistant", "Yes."),
        ("user", "And \nthen?"),
        ("assistant", "No."),
    ]
    assert made.media_turn == 2 and made.visual == "folder/v.mp4"


def test_messages_and_plain_questions():
    content = [{"type": "video"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "It."}]
    a = parse({"video": "v", "messages": messages})
    b = parse({"video": "v", "question": "What?", "answer": "It."})
    assert a.turns == b.turns and a.kind == b.kind == "video"


@pytest.mark.parametrize(
    "entry, message",
    [
        ("text", "it is a str; expected an object"),
        ({"id": 1}, "it has no conversations"),
        ({"conversations": []}, "conversations is []; expected a list of turns"),
        ({"conversations": [{"from": "user", "value": "a"}]}, "a turn is from 'user'; expected"),
        ({"conversations": [{"from": "human", "value": 3}]}, "a turn's value is 3; expected text"),
        ({"conversations": WITHOUT[:1]}, "it has no gpt turn"),
        ({"conversations": WITHOUT[::-1]}, "turn 1 is from gpt; expected human and gpt in turns"),
        ({"conversations": [*WITHOUT, WITHOUT[1]]}, "turn 3 is from gpt"),
        ({"conversations": [WITHOUT[0], {"from": "gpt", "value": " "}]}, "an answer is empty"),
        ({"conversations": TURNS}, "it has a placeholder but names no image or video"),
        ({"image": "a.png", "conversations": WITHOUT}, "it has 0 placeholders"),
        ({"image": "a.png", "conversations": TURNS * 2}, "it has 2 placeholders"),
        ({"image": "a", "video": "b", "conversations": TURNS}, "it names an image and a video"),
        ({"audio": "a.wav", "conversations": WITHOUT}, "it has audio but no video"),
        ({"image": "gone.png", "conversations": TURNS}, "no such file:"),
    ],
)
def test_a_bad_record_is_named(tmp_path, media_dir, entry, message, caplog):
    good = record("What?", "It.", image="a.png")
    file = write_list(tmp_path / "list.json", [good, entry])
    with pytest.raises(InputError) as caught:
        read_records([file], media_dir)
    assert f"{file}[1]" in str(caught.value) and message in str(caught.value)
    with caplog.at_level(logging.WARNING, "tdc.train.data.records"):
        kept = read_records([file], media_dir, "skip")
    assert len(kept) == 1 and "1 of 2 records left out" in caplog.text and message in caplog.text


def test_an_id_is_part_of_the_name(tmp_path, media_dir):
    file = write_list(tmp_path / "list.json", [{"id": "x7", "conversations": TURNS}])
    with pytest.raises(InputError, match=r"list\.json\[0\] \(id x7\): it has a placeholder"):
        read_records([file], media_dir)


def test_a_stage_refuses_media_of_another(media_dir):
    with pytest.raises(InputError, match="it has a video; this stage takes image or text"):
        read_records([media_dir / "videos.json"], media_dir, kinds=("image", None))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not JSON"),
        ('{"a": 1}', "holds a JSON dict; expected a list"),
        ("[]", "no records in"),
    ],
)
def test_a_file_that_is_no_list(tmp_path, text, message):
    file = tmp_path / "list.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_records([file])


def test_a_missing_list(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.json"):
        read_records([tmp_path / "none.json"])


@pytest.mark.parametrize("value", ["", "None", "nan", None, float("nan")])
def test_spellings_of_no_medium(value):
    assert parse({"image": value, "conversations": WITHOUT}).kind is None


def part_entry(**keys) -> dict:
    part = {"type": "video", "path": "a.mp4", **keys}
    question = {"role": "user", "content": [part, {"type": "text", "text": "What?"}]}
    return {"messages": [question, {"role": "assistant", "content": "A dog."}]}


def test_parts_of_messages_name_the_medium_and_how_to_watch_it():
    record = parse(part_entry(nframes=4, start=1.5), "clips")
    assert (record.kind, record.visual) == ("video", "clips/a.mp4")
    assert record.sampling == VideoSampling(num_frames=4, start=1.5)
    entry = {"video": "file:///a.mp4", "question": "What?", "answer": "Dog.", "video_end": 3}
    assert parse(entry, "clips").visual == "/a.mp4"
    assert parse(entry).sampling == VideoSampling(end=3)
    sound = {"type": "audio_url", "audio_url": {"url": "b.wav"}}
    entry = part_entry()
    entry["messages"][0]["content"].append(sound)
    assert parse(entry, "clips").sound == "clips/b.wav"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (part_entry(fsp=2), "unknown key of a video part 'fsp'; did you mean 'fps'"),
        (part_entry(max_pixels=2), "max_pixels': leave it out"),
        (part_entry(fps=-1), "fps: got -1, expected"),
        ({**part_entry(), "video": "b.mp4"}, "it names video twice; expected it once"),
        ({**part_entry(fps=2), "fps": 3}, "it names fps twice"),
        ({"video": "https://a/b.mp4", "question": "?", "answer": "!"}, "fetches nothing by https"),
    ],
)
def test_parts_that_nobody_reads_are_refused(entry, message):
    with pytest.raises(InputError, match=message):
        parse(entry)


def test_the_batch_has_the_part_that_was_asked_for():
    clip = {"video": toy_video(8), "question": "What?", "answer": "A dog."}
    config = calm_config()
    batch = Collator(toy_processor(config))([{**clip, "start": 2, "end": 6, "num_frames": 2}])
    inputs = batch["features"].inputs
    assert inputs["frame_times"].tolist() == [2, 4] and inputs["media_spans"].tolist() == [[2, 6]]
    limited = Collator(toy_processor(config), max_frames=3)([{**clip, "max_frames": 5}])
    assert len(limited["features"].inputs["frame_times"]) == 3


def test_a_part_of_a_file_is_not_what_the_store_has(tmp_path):
    class Store:
        def key(self, *_):
            raise AssertionError("an entry of the whole file")

    path = write_clip(tmp_path / "a.mp4", frames=6, fps=2, size=(16, 16))
    collate = Collator(toy_processor(calm_config()), store=Store())
    clip = {"video": str(path), "question": "What?", "answer": "A dog."}
    batch = collate([{**clip, "start": 1}])
    assert batch["features"].inputs["frame_times"].tolist() == [1, 2]
    with pytest.raises(AssertionError):
        collate([clip])
