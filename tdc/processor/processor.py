# SPDX-License-Identifier: Apache-2.0
"""``TDCProcessor``: messages, files and arrays in, model inputs out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from ..config import TDCConfig
from ..errors import InputError
from .chat_templates import BY_MODEL_TYPE, CHATML
from .keywords import check_values, read_keywords, texts_of
from .media_inputs import MEDIA_INPUTS, Medium, Progress, load_image, load_video, pack_media
from .media_lists import Clip, media_lists, per_video
from .messages import conversations, is_named, read_chat
from .prompt_text import (
    IMAGE_TOKEN,
    LITERAL,
    MEDIUM,
    VIDEO_TOKEN,
    render,
    special_tokens,
    split_prompt,
    valid,
)
from .video_sampling import ALIASES, NAMES

logger = logging.getLogger(__name__)

# Keywords beside messages, and all.
_OPTIONS = (*NAMES, "sampling_rate", "progress", "add_special_tokens", "return_tensors")
_KEYWORDS = ("images", "text", "videos", "audio", "question", *_OPTIONS)


class ModelInputs(BatchFeature):
    """Model inputs; ``to`` moves them but leaves dtypes alone.

    Pixels are bytes, and a waveform in bf16 would have lost its last 16 bits before anyone heard
    it: the model converts inside, where the precision is chosen.
    """

    def to(self, *args: Any, **kwargs: Any) -> BatchFeature:
        kwargs.pop("dtype", None)
        args = tuple(a for a in args if not isinstance(a, torch.dtype))
        return super().to(*args, **kwargs) if args or kwargs else self


class TDCProcessor(ProcessorMixin):
    """Tokenizers, decoding, frame sampling and image preprocessing of a TDC model.

    Args:
        tokenizer: the language model's tokenizer.
        qformer_tokenizer: the Q-Former's BERT tokenizer.
        config: the model's configuration (object or dict).
        chat_template: Jinja template with video, image and audio parts; default: ChatML.
    """

    qformer_tokenizer: Any

    def __init__(
        self,
        tokenizer: Any,
        qformer_tokenizer: Any,
        config: TDCConfig | dict | None = None,
        chat_template: str | None = None,
    ) -> None:
        if not isinstance(config, TDCConfig):
            config = TDCConfig(**(config or {}))
        self.config = config
        super().__init__(tokenizer, qformer_tokenizer, chat_template=chat_template or CHATML)

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        question: str | Sequence[str] | None = None,
        *,
        fps: float | Sequence[float] | None = None,
        num_frames: int | Sequence[int] | None = None,
        max_frames: int | Sequence[int] | None = None,
        start: float | Sequence[float] | None = None,
        end: float | Sequence[float] | None = None,
        sampling_rate: int | None = None,
        progress: Progress | None = None,
        add_special_tokens: bool | None = True,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> ModelInputs:
        """Prompts and media to model inputs.

        Args:
            text: prompts with one ``<video>`` or ``<image>`` where each medium belongs. In what
                :meth:`apply_chat_template` returned, those that a message's text holds are text.
            videos: in the order of the placeholders, files (what :func:`tdc.media.source.local`
                takes: paths, ``file://`` and ``data:`` URLs, bytes, file objects; a
                :class:`tdc.media.media_file.MediaFile` is not scanned twice),
                :class:`tdc.media.video.Video`, and frames sampled at ``fps``: arrays or tensors
                ``[T, H, W, C]`` or ``[T, C, H, W]``, uint8 or floats in [0, 1], or lists of stills.
            images: files, PIL images or arrays of one frame, likewise.
            audio: one entry per video: a file, a waveform, ``(waveform, rate)``, ``False`` for
                silence, or None for the video's own sound track.
            question: what the Q-Former reads; default: the prompt without placeholders.
            fps: sampled frames per second (of arrays: those they were sampled at); default:
                ``config.fps``. This and the next four are for all videos, or lists with one each.
            num_frames: so many evenly spaced frames instead.
            max_frames: frames per video at most; default: what the token budget allows.
            start, end: seconds; frames and sound of [start, end) are taken.
            sampling_rate: Hz of the waveforms in ``audio``; default: 16 kHz.
            progress: called as ``progress(done, total)`` while a video is decoded.
            add_special_tokens: begin prompts with the tokenizer's first token if it has one.
            kwargs: what transformers passes to every processor, such as ``padding=True``.

        Returns:
            ``input_ids``, ``attention_mask``, ``question_ids``, ``question_mask`` and the media
            inputs of :meth:`tdc.encoder.video_encoder.VideoEncoder.forward`.

        Raises:
            InputError: a file that cannot be read; placeholders that do not match the media; a
                keyword that is unknown or would have no effect.
        """
        own = {"fps": fps, "num_frames": num_frames, "max_frames": max_frames}
        own |= {"start": start, "end": end, "sampling_rate": sampling_rate}
        options = read_keywords({**own, **kwargs}, _KEYWORDS)
        check_values(progress, add_special_tokens, return_tensors)
        prompts = texts_of(text, "text", "a prompt with <video> or <image>")
        questions = (
            None if question is None else texts_of(question, "question", "a text per prompt")
        )
        encode = self.encode_prompts
        if add_special_tokens is False:
            encode = partial(encode, first=False)
        inputs = encode(prompts, questions)
        kinds = [
            [piece for kind, piece in self._split(prompt) if kind == MEDIUM] for prompt in prompts
        ]
        rate = options.pop("sampling_rate", None)
        clips, stills, sounds = media_lists(videos, images, audio)
        clips = per_video(clips, options)
        self._check_counts(kinds, clips, stills)
        if clips or stills:
            lengths = inputs["attention_mask"].sum(1).tolist()
            media = self._load(kinds, lengths, clips, stills, sounds, rate, progress)
            inputs.update(pack_media(self.config, media))
        return ModelInputs(inputs)

    # --- text ------------------------------------------------------------------------------------

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_tensors: str = "pt",
        processor_kwargs: dict | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render messages; with ``tokenize=True`` also decode their media.

        A part is ``{"type": "video", "path": ...}`` (or ``"video"``, ``"url"``, ``"base64"``),
        ``"image"`` or ``"audio"`` likewise, or ``{"type": "text", "text": ...}``; OpenAI's
        ``video_url``, ``image_url``, ``audio_url`` and ``input_audio`` are taken as well. What
        names or holds a file is as in :meth:`__call__`; network addresses are refused. Video parts
        may say ``fps``, ``num_frames``, ``max_frames``, ``start`` and ``end`` for themselves.

        An audio part replaces the sound track of the video before it (or of the first one, if none
        came before). The question is the text of the last user message. In the texts, ``<video>``,
        ``<image>`` and the names of special tokens are text, for a processor that is given the
        returned prompt as well.

        Args:
            processor_kwargs, kwargs: keywords of the processor, and variables of the template.

        Raises:
            InputError: a keyword, a key or type of a part, or a message that is unknown or would
                have no effect; what :meth:`__call__` refuses.
        """
        source = f"{chat_template} {self.chat_template}"
        variables = {
            name: value
            for name, value in kwargs.items()
            if name not in (*_KEYWORDS, *ALIASES) and is_named(name, source)
        }
        kwargs = {k: v for k, v in kwargs.items() if k not in variables} | (processor_kwargs or {})
        options = read_keywords(kwargs, _OPTIONS)
        batch, single = conversations(conversation)
        chats = [read_chat(messages, source) for messages in batch]
        template = partial(
            super().apply_chat_template,
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **variables,
        )
        specials = special_tokens(self.tokenizer)
        prompts = [render(chat.messages, specials, template) for chat in chats]
        if not tokenize:
            return prompts[0] if single else prompts
        media = [chat.media() for chat in chats]
        inputs = self(
            text=prompts,
            videos=[v for m in media for v in m["videos"]] or None,
            images=[i for m in media for i in m["images"]] or None,
            audio=[a for m in media for a in m["audio"]] or None,
            question=[chat.question() for chat in chats],
            **{"return_tensors": return_tensors, **options},
        )
        return inputs if return_dict else inputs["input_ids"]

    def encode_prompts(
        self,
        prompts: Sequence[str],
        questions: str | Sequence[str] | None = None,
        first: bool = True,
    ) -> dict[str, torch.Tensor]:
        """Ids of prompts, left-padded, and of questions for the Q-Former, right-padded."""
        if questions is None:
            questions = [
                "".join(piece for kind, piece in self._split(prompt) if kind != MEDIUM).strip()
                for prompt in prompts
            ]
        elif isinstance(questions, str):
            questions = [questions]
        if len(questions) != len(prompts):
            raise InputError(f"question has {len(questions)} entries; expected {len(prompts)}")
        ids = [self.prompt_ids(prompt, first) for prompt in prompts]
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        input_ids, attention_mask = _pad(ids, pad or 0, left=True)
        rows = [self.question_tokens(question) for question in questions]
        question_ids, question_mask = _pad(rows, self.qformer_tokenizer.pad_token_id or 0)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "question_ids": question_ids,
            "question_mask": question_mask,
        }

    def question_tokens(self, question: str) -> list[int]:
        """What the Q-Former reads of a question: at most ``max_question_tokens``."""
        limit = self.config.max_question_tokens
        tokenize = partial(self.qformer_tokenizer, valid(question), split_special_tokens=True)
        ids = tokenize().input_ids
        if len(ids) <= limit:
            return ids
        logger.warning(
            "the compressor reads the first %d of the question's %d tokens; the language model "
            "reads all of it",
            limit,
            len(ids),
        )
        return tokenize(truncation=True, max_length=limit).input_ids

    def prompt_ids(self, prompt: str, first: bool = True) -> list[int]:
        """Ids with ``media_token_id`` at the placeholders; pieces are tokenized on their own.

        ``first``: the prompt begins here, with the tokenizer's first token if it has one.
        """
        ids: list[int] = []
        bos = self.tokenizer.bos_token_id
        starts_with_bos = self.tokenizer("").input_ids[:1] == [bos]
        if first and starts_with_bos and not prompt.startswith(self.tokenizer.bos_token):
            ids.append(bos)
        for kind, piece in self._split(prompt):
            if kind == MEDIUM:
                ids.append(self.config.media_token_id)
            else:
                ids += self.tokenizer(
                    valid(piece), add_special_tokens=False, split_special_tokens=kind == LITERAL
                ).input_ids
        return ids

    def _split(self, prompt: str) -> Iterator[tuple[str, str]]:
        return split_prompt(prompt, special_tokens(self.tokenizer))

    def batch_decode(self, sequences: Any, *args: Any, **kwargs: Any) -> list[str]:
        """Text of token ids; placeholders are left out."""
        rows = sequences.tolist() if hasattr(sequences, "tolist") else sequences
        rows = [[i for i in row if i != self.config.media_token_id] for row in rows]
        return self.tokenizer.batch_decode(rows, *args, **kwargs)

    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> str:
        return self.batch_decode([token_ids], *args, **kwargs)[0]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        return self.batch_decode(
            generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs
        )

    # --- media -----------------------------------------------------------------------------------

    def _check_counts(self, kinds: list[list[str]], videos: list, images: list) -> None:
        found = [token for prompt in kinds for token in prompt]
        for token, given, name in (
            (VIDEO_TOKEN, videos, "videos"),
            (IMAGE_TOKEN, images, "images"),
        ):
            if found.count(token) != len(given):
                raise InputError(
                    f"the prompts hold {found.count(token)} {token} placeholders, but "
                    f"{len(given)} {name} came; expected one each"
                )

    def _load(
        self,
        kinds: list[list[str]],
        prompt_lengths: list[int],
        clips: Sequence[Clip],
        images: Sequence[Any],
        sounds: Sequence[Any],
        rate: int | None,
        progress: Progress | None,
    ) -> list[Medium]:
        queue, stills = iter(zip(clips, sounds, strict=True)), iter(images)
        media: list[Medium] = []
        for tokens, length in zip(kinds, prompt_lengths, strict=True):
            for token in tokens:
                if token == IMAGE_TOKEN:
                    media.append(load_image(next(stills)))
                    continue
                clip, sound = next(queue)
                media.append(
                    load_video(
                        self.config,
                        clip.source,
                        sound,
                        length,
                        tokens.count(VIDEO_TOKEN),
                        progress=progress,
                        sampling=clip.sampling,
                        sampling_rate=rate,
                    )
                )
        return media

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "question_ids", "question_mask", *MEDIA_INPUTS]


def new_processor(
    tokenizer: Any, qformer_tokenizer: Any, config: TDCConfig, bert: str
) -> TDCProcessor:
    """The processor of a new model, with the chat template of its kind of language model.

    Args:
        bert: where the Q-Former's tokenizer was read from, for the message.

    Raises:
        InputError: the tokenizer's vocabulary is not that of the Q-Former's table.
    """
    # Without vocab.txt, transformers makes up a vocabulary of the five special tokens. A table may
    # be padded by a few rows, up to a multiple of 64.
    words, rows = len(qformer_tokenizer), config.qformer_config.vocab_size
    if not rows - 64 < words <= rows:
        raise InputError(
            f"{bert}: the vocabulary has {words} words, but the Q-Former's table has {rows} rows; "
            "expected the folder of the Q-Former's BERT, with vocab.txt"
        )
    template = BY_MODEL_TYPE.get(config.text_config.model_type, CHATML)
    return TDCProcessor(tokenizer, qformer_tokenizer, config, chat_template=template)


def _pad(
    rows: Sequence[Sequence[int]], value: int, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 ``[B, T]`` ids and mask."""
    length = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), length), value, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return ids, mask


AutoProcessor.register(TDCConfig, TDCProcessor, exist_ok=True)
