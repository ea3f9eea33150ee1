# SPDX-License-Identifier: Apache-2.0
"""Examples to one batch: decoding, tokens, labels, padding. Runs in the data loader's workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...config import TDCConfig
from ...encoder.feature_store import FeatureStore
from ...encoder.tower_features import TowerFeatures
from ...errors import InputError
from ...processor.budget import frame_budget
from ...processor.media_inputs import load_image, load_video, pack_media
from ...processor.processor import TDCProcessor
from ...processor.video_sampling import WHOLE
from ...prompt import IGNORE_INDEX
from .conversation import Conversation, encode_conversation
from .media_batch import MediaBatch
from .records import Record, parse
from .turns import PADDING

logger = logging.getLogger(__name__)

_TRIES = 8  # unreadable media in a row before it is an error
# Frames that a long video may bring depend on the text beside it. Rounded down to a multiple, texts
# of similar length share one entry of the feature store (a 224-frame entry: 0.7 GB).
FRAME_STEP = 16


@dataclass(frozen=True)
class Unseen:
    """A medium that the towers have yet to see; ``key``: its name in the store."""

    inputs: dict[str, Tensor]
    key: str | None


class Collator:
    """Callable for a ``DataLoader``.

    Args:
        processor: tokenizers, chat template and the model's configuration.
        sound: False leaves the videos' sound out.
        max_frames: frames per video at most; None: the model's ``max_frames``.
        store: tower outputs on disk, if they are kept.
        substitute: the record to take instead of one whose medium cannot be read; None: an error.
        separate_turns: say which turn each token belongs to.

    An example is a :class:`tdc.train.data.records.Record`, or anything that
    :func:`tdc.train.data.records.parse` takes; its medium a file, an array, a PIL image or
    :class:`tdc.encoder.tower_features.TowerFeatures`.
    """

    def __init__(
        self,
        processor: TDCProcessor,
        sound: bool = True,
        max_frames: int | None = None,
        store: FeatureStore | None = None,
        substitute: Callable[[Record], Record] | None = None,
        separate_turns: bool = False,
    ) -> None:
        self.processor, self.sound, self.store = processor, sound, store
        self.separate_turns = separate_turns
        self.max_frames, self.substitute = max_frames, substitute

    @property
    def config(self) -> TDCConfig:
        return self.processor.config

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Padded ids, labels and questions, and the media.

        Returns:
            int64 ``input_ids``, ``attention_mask``, ``labels`` ``[B, T]``, padded on the right;
            with ``separate_turns``, ``turns`` as in :mod:`tdc.train.data.turns`;
            ``question_ids``, ``question_mask`` ``[B, T']``; where there are media, ``features``.

        Raises:
            InputError: a medium that cannot be read, or an example that is none.
        """
        records = [e if isinstance(e, Record) else parse(e) for e in examples]
        loaded = [self._load(record) for record in records]
        texts = [text for text, _ in loaded]
        pad = self.processor.tokenizer.pad_token_id
        pad = self.processor.tokenizer.eos_token_id if pad is None else pad
        ids, mask = pad_rows([text.input_ids for text in texts], pad or 0)
        labels, _ = pad_rows([text.labels for text in texts], IGNORE_INDEX)
        questions = [self.processor.question_tokens(text.question) for text in texts]
        question_ids, question_mask = pad_rows(
            questions, self.processor.qformer_tokenizer.pad_token_id or 0
        )
        batch: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "question_ids": question_ids,
            "question_mask": question_mask,
        }
        if self.separate_turns:
            batch["turns"], _ = pad_rows([text.turns for text in texts], PADDING)
        media = [medium for _, medium in loaded if medium is not None]
        if media:
            batch["features"] = self._batch(media)
        return batch

    def _batch(self, media: Sequence[TowerFeatures | Unseen]) -> MediaBatch:
        items = [medium if isinstance(medium, TowerFeatures) else None for medium in media]
        unseen = [medium for medium in media if isinstance(medium, Unseen)]
        inputs = join_inputs([medium.inputs for medium in unseen])
        return MediaBatch(items, inputs, self.store, [medium.key for medium in unseen])

    def _load(self, record: Record) -> tuple[Conversation, TowerFeatures | Unseen | None]:
        """Text and medium of a record, or of the first after it whose medium can be read."""
        for _ in range(_TRIES):
            text = encode_conversation(self.processor, record)
            if record.kind is None:
                return text, None
            try:
                return text, self._medium(record, text)
            except InputError as error:
                if self.substitute is None:
                    raise InputError(f"{record.name}: {error}" if record.name else error) from None
                logger.warning("%s: %s; the next record takes its place", record.name, error)
                record = self.substitute(record)
        raise InputError(f"{_TRIES} media in a row cannot be read, up to {record.name}")

    def _medium(self, record: Record, text: Conversation) -> TowerFeatures | Unseen:
        if isinstance(record.visual, TowerFeatures):
            features = record.visual
            return features if self.sound else replace(features, audio=None)
        limit = self._frame_limit(text)
        sound = record.sound if self.sound and self.config.audio_config else False
        key = None
        if self.store is not None and record.sampling == WHOLE and _is_file(record.visual):
            if sound is None or sound is False or _is_file(sound):
                key = self.store.key(record.visual, sound, limit)
            found = None if key is None else self.store.load(key)
            if found is not None:
                return found
        if record.kind == "image":
            medium = load_image(record.visual)
        else:
            most = min(limit, record.sampling.max_frames or limit)
            sampling = replace(record.sampling, max_frames=most)
            length = len(text.input_ids)
            medium = load_video(self.config, record.visual, sound, length, sampling=sampling)
        return Unseen(pack_media(self.config, [medium]), key)

    def _frame_limit(self, text: Conversation) -> int:
        limit = frame_budget(self.config, len(text.input_ids))
        if limit < self.config.max_frames and limit > FRAME_STEP:
            limit -= limit % FRAME_STEP
        return limit if self.max_frames is None else min(limit, self.max_frames)


def _is_file(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and os.path.isfile(value)


def join_inputs(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Packed media behind each other, as if packed together; waveforms padded to the longest."""
    if not parts:
        return {}
    waves = [part["waveforms"][0] if "waveforms" in part else torch.zeros(0) for part in parts]
    names = [name for name in parts[0] if not name.startswith("waveform")]
    inputs = {name: torch.cat([part[name] for part in parts]) for name in names}
    if any(len(wave) for wave in waves):
        inputs["waveforms"] = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        inputs["waveform_lengths"] = torch.tensor([len(wave) for wave in waves])
    return inputs


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """int64 ``[B, T]`` padded on the right, and the mask of what is not padding."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long()
