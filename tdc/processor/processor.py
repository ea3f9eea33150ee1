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
from .keywords import check_keywords
from .media_inputs import MEDIA_INPUTS, Medium, Progress, load_image, load_video, pack_media
from .messages import check_messages, is_named, last_question, media_of
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

logger = logging.getLogger(__name__)

# Keywords beside messages, and all.
_OPTIONS = ("max_frames", "progress", "add_special_tokens", "return_tensors")
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
        max_frames: int | None = None,
        progress: Progress | None = None,
        add_special_tokens: bool | None = True,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> ModelInputs:
        """Prompts and media to model inputs.

        Args:
            text: prompts with one ``<video>`` or ``<image>`` where each medium belongs. In what
                :meth:`apply_chat_template` returned, those that a message's text holds are text.
            videos: files (paths, or a :class:`tdc.media.media_file.MediaFile`, which is not scanned
                twice), uint8 arrays ``[T, H, W, 3]`` sampled at ``config.fps``, or
                :class:`tdc.media.video.Video`, in the order of the placeholders.
            images: files, PIL images or uint8 arrays ``[H, W, 3]``, likewise.
            audio: one entry per video: a file, an fp32 16-kHz waveform, ``False`` for silence, or
                None for the video's own sound track.
            question: what the Q-Former reads; default: the prompt without placeholders.
            max_frames: frames per video; default: what the token budget allows.
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
        check_keywords(kwargs, _KEYWORDS)
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors is {return_tensors!r}; expected 'pt'")
        if text is None:
            raise ValueError("text is missing; expected a prompt with <video> or <image>")
        prompts = [text] if isinstance(text, str) else list(text)
        encode = self.encode_prompts
        if add_special_tokens is False:
            encode = partial(encode, first=False)
        inputs = encode(prompts, question)
        kinds = [
            [piece for kind, piece in self._split(prompt) if kind == MEDIUM] for prompt in prompts
        ]
        videos, images = _flatten(videos), _flatten(images)
        self._check_counts(kinds, videos, images)
        if not videos and any(s is not None and s is not False for s in _flatten(audio)):
            raise InputError("audio came without videos; expected a video that it belongs to")
        if videos or images:
            lengths = inputs["attention_mask"].sum(1).tolist()
            inputs.update(
                self._encode_media(kinds, lengths, videos, images, audio, max_frames, progress)
            )
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

        A part is ``{"type": "video", "path": ...}`` (or ``"video"``, ``"url"``), ``"image"`` or
        ``"audio"`` likewise, or ``{"type": "text", "text": ...}``. An audio part replaces the sound
        track of the video before it (or of the first one, if none came before). The question is the
        text of the last user message. In the texts, ``<video>``, ``<image>`` and the names of
        special tokens are text, for a processor that is given the returned prompt as well.

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
            if name not in _KEYWORDS and is_named(name, source)
        }
        kwargs = {k: v for k, v in kwargs.items() if k not in variables} | (processor_kwargs or {})
        options = {k: v for k, v in kwargs.items() if k in _OPTIONS}
        check_keywords({k: v for k, v in kwargs.items() if k not in _OPTIONS}, _OPTIONS)
        single = bool(conversation) and isinstance(conversation[0], dict)
        conversations = [conversation] if single else list(conversation)
        template = partial(
            super().apply_chat_template,
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **variables,
        )
        for messages in conversations:
            check_messages(messages, source)
        specials = special_tokens(self.tokenizer)
        prompts = [render(messages, specials, template) for messages in conversations]
        if not tokenize:
            return prompts[0] if single else prompts
        media = [media_of(messages) for messages in conversations]
        inputs = self(
            text=prompts,
            videos=[v for m in media for v in m["videos"]] or None,
            images=[i for m in media for i in m["images"]] or None,
            audio=[a for m in media for a in m["audio"]] or None,
            question=[last_question(messages) for messages in conversations],
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
            raise ValueError(f"question has {len(questions)} entries; expected {len(prompts)}")
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

    def _encode_media(
        self,
        kinds: list[list[str]],
        prompt_lengths: list[int],
        videos: list,
        images: list,
        audio: Any,
        max_frames: int | None,
        progress: Progress | None,
    ) -> dict[str, Any]:
        sounds = list(audio) if isinstance(audio, (list, tuple)) else [audio] * len(videos)
        if len(sounds) != len(videos):
            raise InputError(
                f"audio has {len(sounds)} entries for {len(videos)} videos; expected one per video"
            )
        queue, pictures = iter(zip(videos, sounds, strict=True)), iter(images)
        config = self.config
        media: list[Medium] = []
        for tokens, length in zip(kinds, prompt_lengths, strict=True):
            count = tokens.count(VIDEO_TOKEN)
            for token in tokens:
                if token == IMAGE_TOKEN:
                    media.append(load_image(next(pictures)))
                else:
                    video, sound = next(queue)
                    media.append(
                        load_video(config, video, sound, length, count, max_frames, progress)
                    )
        return pack_media(config, media)

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


def _flatten(media: Any) -> list:
    """A flat list of media from one, a list, or one list per prompt."""
    if media is None:
        return []
    if isinstance(media, (list, tuple)):
        return [m for item in media for m in (item if isinstance(item, (list, tuple)) else [item])]
    return [media]


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
