# SPDX-License-Identifier: Apache-2.0
"""TDCProcessor: chat templates, token ids, media of every kind, frame budget, files."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from toy import QUESTION, toy_config, toy_processor, toy_sound, toy_video
from transformers import AutoProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tdc import InputError, TDCProcessor
from tdc.config import MEDIA_TOKEN_ID
from tdc.media.pixels import normalize_pixels
from tdc.media.video import Video
from tdc.processor.chat_templates import LLAMA3
from tdc.testing import byte_tokenizer, character_bert_tokenizer
from tiny.world import make_clip, write_clip

VIDEO = {"type": "video", "path": "clip.mp4"}
CLIP = make_clip(0, 0)


def user(*parts) -> dict:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"role": "user", "content": content}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", CLIP)


# --- text ---


def test_chatml(processor):
    messages = [user(VIDEO, QUESTION)]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<video>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    messages = [
        {"role": "system", "content": "Be brief."},
        user({"type": "image", "path": "a.png"}, {"type": "audio", "path": "a.wav"}, "One"),
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ]
    assert processor.apply_chat_template(messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nOne<|im_end|>\n"
        "<|im_start|>assistant\nTwo<|im_end|>\n<|im_start|>user\nThree<|im_end|>\n"
    )
    assert processor.apply_chat_template([messages, messages[:1]])[1] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
    )


def test_llama3(processor):
    rendered = processor.apply_chat_template(
        [user(VIDEO, QUESTION)], LLAMA3, add_generation_prompt=True
    )
    assert rendered == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        f"<video>\n{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def llama_tokenizer():
    """Byte tokenizer that puts <|begin_of_text|> in front of everything, as Llama's does."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": AddedToken("<|begin_of_text|>", special=True)})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    assert tokenizer("a").input_ids[0] == bos
    return tokenizer


@pytest.mark.parametrize("template", [LLAMA3, None], ids=["template has bos", "template has none"])
def test_exactly_one_bos(template):
    processor = TDCProcessor(
        llama_tokenizer(), character_bert_tokenizer(), toy_config(), chat_template=template
    )
    bos = processor.tokenizer.bos_token_id
    prompt = processor.apply_chat_template([user(VIDEO, QUESTION)], add_generation_prompt=True)
    ids = processor.encode_prompts([prompt])["input_ids"][0].tolist()
    assert ids[0] == bos and ids.count(bos) == 1
    later = processor.prompt_ids(QUESTION, first=False)
    assert [bos, *later] == processor.prompt_ids(QUESTION)
    assert ids.count(MEDIA_TOKEN_ID) == 1
    bare = processor(text=QUESTION, add_special_tokens=False)["input_ids"][0].tolist()
    assert [bos, *bare] == processor(text=QUESTION)["input_ids"][0].tolist()


def test_ids_spell_the_prompt_and_pad_left(processor):
    prompts = ["<video>\nWhat?", "Nothing to see <image> but text."]
    inputs = processor.encode_prompts(prompts)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert (ids == MEDIA_TOKEN_ID).sum(1).tolist() == [1, 1]
    assert mask[0].tolist() == sorted(mask[0].tolist()) and not mask[0, 0]
    assert (ids[0][mask[0] == 0] == processor.tokenizer.pad_token_id).all()
    assert ids[0][mask[0] == 1][0] == MEDIA_TOKEN_ID
    kept = [row[row_mask == 1] for row, row_mask in zip(ids, mask, strict=True)]
    assert processor.batch_decode(kept) == [
        p.replace("<video>", "").replace("<image>", "") for p in prompts
    ]
    assert processor.decode(kept[0]) == "\nWhat?"
    assert processor.post_process_image_text_to_text([[72, 257]]) == processor.batch_decode([[72]])


def test_question_goes_to_the_qformer(processor):
    inputs = processor.encode_prompts(["<video>\nwho?", "<video>\nwho is it?"])
    bert = processor.qformer_tokenizer
    rows = [bert(q).input_ids for q in ("who?", "who is it?")]
    for row, ids, mask in zip(
        rows, inputs["question_ids"].tolist(), inputs["question_mask"].tolist(), strict=True
    ):
        assert ids[: len(row)] == row and sum(mask) == len(row) and mask[0] == 1
    long = toy_processor(toy_config(max_question_tokens=10)).encode_prompts(["why " * 50])
    assert long["question_ids"].shape == (1, 10)
    assert long["question_ids"][0, -1] == bert.sep_token_id
    given = processor.encode_prompts(["<video>\nwho?"], "who is it?")
    assert given["question_ids"][0].tolist() == rows[1]
    with pytest.raises(ValueError, match="question has 1 entries; expected 2"):
        processor.encode_prompts(["a", "b"], ["a"])


# --- messages ---


def test_messages_with_media(processor, clip):
    messages = [
        user({"type": "video", "path": str(clip)}, "First?"),
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        user("Second?"),
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    bert = processor.qformer_tokenizer
    assert inputs["question_ids"][0].tolist() == bert("Second?").input_ids
    count = CLIP.num_frames
    assert inputs["media_frames"].tolist() == [count]
    assert inputs["media_sizes"].tolist() == [[64, 64]]
    assert inputs["frame_times"].tolist() == pytest.approx(list(range(count)), abs=0.05)
    assert inputs["waveform_lengths"].item() == pytest.approx(count * 16_000, rel=0.02)
    only_ids = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert torch.equal(only_ids, inputs["input_ids"])


def test_a_batch_of_messages(processor, clip):
    one = [user({"type": "video", "video": str(clip)}, "What?")]
    two = [user({"type": "image", "image": toy_video(1)[0]}, "And this?")]
    inputs = processor.apply_chat_template([one, two], tokenize=True, return_dict=True)
    assert inputs["input_ids"].shape[0] == 2
    assert inputs["media_is_video"].tolist() == [True, False]


def test_an_audio_part_belongs_to_its_video(processor):
    videos = [toy_video(4, seed=i) for i in range(3)]
    content = [
        {"type": "video", "video": videos[0]},
        {"type": "video", "video": videos[1]},
        {"type": "audio", "audio": toy_sound(2)},
        {"type": "video", "video": videos[2]},
        {"type": "text", "text": "?"},
    ]

    def lengths(content) -> list:
        messages = [{"role": "user", "content": content}]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        return inputs["waveform_lengths"].tolist()

    assert lengths(content) == [0, 32_000, 0]
    before = [content[2], content[0], content[1], content[4]]
    assert lengths(before) == [32_000, 0]  # before any video: the first one's
    for wrong, message in (
        ([{"type": "audio", "audio": toy_sound(1)}], "an audio part but no video"),
        ([{"type": "video"}], "a video part names no file; expected a 'path'"),
    ):
        with pytest.raises(InputError, match=message):
            lengths(wrong)


# --- media ---


def test_files_arrays_and_pil_give_the_same_pixels(processor, tmp_path):
    frames = toy_video(3, (20, 10))
    image = Image.fromarray(frames[0])
    image.save(tmp_path / "a.png")
    stills = [
        processor(text="<image>", images=[i])
        for i in (image, frames[0], tmp_path / "a.png", str(tmp_path / "a.png"))
    ]
    for other in stills[1:]:
        assert torch.equal(other["siglip_pixels"], stills[0]["siglip_pixels"])
        assert other["media_sizes"].tolist() == [[20, 10]]
    array = processor(text="<video>", videos=[frames], audio=[False])
    video = Video(frames, np.array([0.5, 1.5, 2.5]), 3.0, 10.0)
    timed = processor(text="<video>", videos=[video], audio=[False])
    assert torch.equal(array["dinov2_pixels"], timed["dinov2_pixels"])
    assert array["frame_times"].tolist() == [0.0, 1.0, 2.0]
    assert timed["frame_times"].tolist() == [0.5, 1.5, 2.5]
    # A flat list, one list per prompt and a single medium are the same.
    nested = processor(text=["<video>", "<video>"], videos=[[frames], [frames]], audio=False)
    assert nested["media_frames"].tolist() == [3, 3] and "waveforms" not in nested
    assert processor(text="<image>", images=image)["media_frames"].tolist() == [1]


@pytest.mark.parametrize("size", [(56, 56), (24, 24), (100, 100), (40, 30), (30, 64)])
def test_pixels_are_those_of_transformers(processor, size):
    """The authors: centred square of int(255 * mean), then SigLIP's PIL image processor."""
    frame = toy_video(1, size)[0]
    side = max(size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(Image.fromarray(frame), ((side - size[0]) // 2, (side - size[1]) // 2))
    reference = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    expected = torch.as_tensor(np.asarray(reference(square)["pixel_values"][0]))
    inputs = processor(text="<image>", images=[frame])
    pixels = inputs["siglip_pixels"]
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels[0].float(), (expected * 127.5 + 127.5).round())
    ours = normalize_pixels(pixels, (0.5,) * 3, (0.5,) * 3)[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_frames_that_do_not_fit_are_left_out_evenly_and_said(caplog):
    config = toy_config(max_context_length=200)
    processor = toy_processor(config)
    text = "<video>\nwhat?"
    with caplog.at_level(logging.WARNING, "tdc"):
        inputs = processor(text=text, videos=[toy_video(30)], audio=[False])
    kept = int(inputs["media_frames"])
    # 6 tokens of text, 16 reserved; 4 scenes of 20 + 6 + 1 tokens, then 3 + 1 a frame
    assert kept == 4 + (200 - 16 - 6 - 4 * 27) // 4
    assert inputs["frame_times"].tolist() == [int(30 / kept * i) for i in range(kept)]
    assert inputs["media_seconds"].tolist() == [30]
    (record,) = caplog.records
    expected = f"the video has 30 frames at 1 per second; {kept} evenly spaced ones fit the budget"
    assert record.getMessage() == expected
    caplog.clear()
    more = processor(text=text, videos=[toy_video(30)], audio=[False], max_frames=30)
    assert int(more["media_frames"]) == 30 and not caplog.records


def test_landscapes_may_bring_more_frames():
    processor = toy_processor(toy_config(max_context_length=200))
    counts = [
        int(processor(text="<video>", videos=[toy_video(60, s)], audio=[False])["media_frames"])
        for s in ((24, 24), (48, 24))
    ]
    assert counts[1] == counts[0] + 10  # 4 static frames of 10 tokens less, at 4 a frame


@pytest.mark.parametrize(
    ("text", "videos", "images", "message"),
    [
        ("no placeholder", 1, 0, "hold 0 <video> placeholders, but 1 videos came"),
        ("<video><video>", 1, 0, "hold 2 <video> placeholders, but 1 videos came"),
        ("<video>", 1, 1, "hold 0 <image> placeholders, but 1 images came"),
        ("<image>", 0, 0, "hold 1 <image> placeholders, but 0 images came"),
    ],
)
def test_placeholders_must_match_the_media(processor, text, videos, images, message):
    with pytest.raises(InputError, match=message):
        processor(text=text, videos=[toy_video(2)] * videos, images=[toy_video(1)[0]] * images)


def test_wrong_inputs_are_named(processor, caplog):
    frames = toy_video(2)
    with pytest.raises(InputError, match=r"video is uint8 \[0, 24, 24, 3\].*T >= 1"):
        processor(text="<video>", videos=[frames[:0]])
    with pytest.raises(InputError, match=r"image is uint8 \[24, 24\]; expected uint8 \[H, W, 3\]"):
        processor(text="<image>", images=[frames[0, :, :, 0]])
    with pytest.raises(InputError, match="audio has 2 entries for 1 videos"):
        processor(text="<video>", videos=[frames], audio=[False, False])
    with pytest.raises(InputError, match=r"audio has shape \[2, 5\]; expected one mono waveform"):
        processor(text="<video>", videos=[frames], audio=[np.zeros((2, 5))])
    with pytest.raises(ValueError, match="text is missing"):
        processor(videos=[frames])
    with pytest.raises(ValueError, match="return_tensors is 'np'; expected 'pt'"):
        processor(text="a", return_tensors="np")
    deaf = toy_processor(toy_config(audio_config=None))
    with caplog.at_level(logging.WARNING, "tdc"):
        assert "waveforms" not in deaf(text="<video>", videos=[frames], audio=[toy_sound(1)])
    assert "no audio encoder; the sound is not used" in caplog.text


def test_moving_keeps_dtypes(processor):
    inputs = processor(text="<video>", videos=[toy_video(2)], audio=[toy_sound(1)])
    before = {name: tensor.dtype for name, tensor in inputs.items()}
    for moved in (inputs.to("cpu", torch.float16), inputs.to(dtype=torch.bfloat16)):
        assert {name: tensor.dtype for name, tensor in moved.items()} == before


# --- files ---


def test_save_and_load(tmp_path):
    config = toy_config(num_scenes=7)
    processor = TDCProcessor(
        byte_tokenizer(), character_bert_tokenizer(), config, chat_template=LLAMA3
    )
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is TDCProcessor
    assert loaded.config.to_dict()["num_scenes"] == 7
    assert loaded.config.text_config.to_dict() == config.text_config.to_dict()
    messages = [user(VIDEO, QUESTION)]
    assert loaded.apply_chat_template(messages) == processor.apply_chat_template(messages)
    inputs = {"text": "<video>\nwhat?", "videos": [toy_video(3)], "audio": [toy_sound(1)]}
    first, second = processor(**inputs), loaded(**inputs)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
