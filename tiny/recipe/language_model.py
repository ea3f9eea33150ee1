# SPDX-License-Identifier: Apache-2.0
"""Training of the language model alone: looking things up in the contexts of whole clips.

Any other TDC starts from a language model that can read; this one is new. Connector and compressor
are frozen meanwhile, so the contexts are computed once per clip and kept on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback

from tdc.model import TDCForConditionalGeneration
from tdc.processor.processor import TDCProcessor
from tdc.prompt import IGNORE_INDEX
from tdc.train.data.collator import pad_rows
from tdc.train.data.turns import PADDING, around_media, separate

from ..model import MARKS
from ..world import FRAME_PROMPT, Clip, ask, ask_frame, frame_caption
from ..world.frame_questions import FRAME_KINDS
from ..world.labels import UNASKED
from ..world.questions import KINDS, Question
from ..world.story import story_labels
from .attention_labels import look_errors, word_errors
from .clip_features import SHARD, ClipFeatures, some_frames
from .examples import (
    FULL,
    ONE,
    STILL,
    TWO,
    Examples,
    Mixture,
    Turn,
    contrasts,
    only,
    talk_turns,
    talks,
)
from .story_labels import Stories, told

# Contexts per clip, each with its own question: of the whole clip, and of pairs of frames.
VARIANTS = 2
PAIRS = 4
# Questions about two frames, per frame. Most of them search for an object; those about the whole
# picture are learned quickly.
FRAME_TURNS = 6
SEARCHED = tuple(k for k in FRAME_KINDS if k not in ("frame_background", "frame_texture"))
LOOKED_UP = ("shape", "color", "place")
# Kinds that tell scenes apart, and kinds about their first frames.
ORDER = ("background", "texture", "scene_number")
OF_A_SCENE = (*ORDER, "scene_count", "count", "shape", "color", "place")
BY_SOUND = ("sound_scene", "seen_while")  # from a sound to its scene or flash
# From flashes to sounds, from sounds to flashes, and from one flash to others.
EVENTS = ("seen_while", "sound_event", "next", "order_shape", "order_color")
CHANGES = tuple(name for name, kind in KINDS.items() if "change" in kind.needs)
# Examples of similar length per forward pass: little padding, and arrays that fit the caches. A
# step on 16 took 0.49 s of a core in one pass and 0.37, 0.33, 0.32 s in passes of 8, 4 and 2.
TOGETHER = 4
# Shares of the schedule at which the attention loss and the word loss set in.
LOOKING, REPEATING = 0.55, 0.65
_END, _, _, _QUESTION, _ANSWER = MARKS
PADDINGS = {
    **{"ids": 0, "labels": IGNORE_INDEX, "turns": PADDING},
    **{"scenes": UNASKED, "flashes": UNASKED},
}


def heard(clip: Clip, variant: int) -> Question:
    """The question that the compressor reads for a variant of a clip's context."""
    return ask(clip, salt=f"context {variant}")[0]


def pair(clip: Clip, number: int) -> tuple[int, int, Question]:
    """A scene, one of its later frames, and the compressor's question about that frame."""
    rng = Random(f"{clip.name}/pair/{number}")
    scene = rng.randrange(len(clip.scenes))
    later = clip.starts[scene] + rng.randrange(1, clip.scenes[scene].num_frames)
    return scene, later, ask_frame(clip, later, salt=number)[0]


class KeptContexts:
    """Disk cache of context tokens: per training clip ``VARIANTS`` of the whole clip, then
    ``PAIRS`` of a scene's first frame and a later one.

    Args:
        folder: of the shards, each written whole or not at all; need not exist yet.
        clips: features of the clips.
    """

    def __init__(self, folder: Path, clips: ClipFeatures) -> None:
        self.folder, self.clips = folder, clips
        self._open: dict[int, list[Tensor]] = {}

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """Context tokens fp32 ``[N, D]`` of (clip, number of its context)."""
        index, which = place
        number = index // SHARD
        if number not in self._open:
            self._open[number] = torch.load(self._shard(number))
        return self._open[number][(index % SHARD) * (VARIANTS + PAIRS) + which].float()

    def write(
        self,
        model: TDCForConditionalGeneration,
        processor: TDCProcessor,
        share: tuple[int, int],
        say: Callable[[str], None],
    ) -> None:
        """Compute the missing shards; ``share``: number of this process, number of processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        made = partial(_contexts, model.eval(), processor, self)
        for number in range(-(-self.clips.count // SHARD)):
            path = self._shard(number)
            if number % share[1] == share[0] and not path.exists():
                stop = min(self.clips.count, (number + 1) * SHARD)
                tokens = [one for i in range(number * SHARD, stop) for one in made(i)]
                work = path.with_suffix(f".tmp{os.getpid()}")
                torch.save(tokens, work)
                os.replace(work, path)
                say(f"contexts of {stop:,} of {self.clips.count:,} clips")

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.pt"


@torch.inference_mode()
def _contexts(
    model: TDCForConditionalGeneration, processor: TDCProcessor, kept: KeptContexts, index: int
) -> list[Tensor]:
    clip, features = kept.clips.clip(index), kept.clips[index]
    asked = [(features, [heard(clip, number) for number in range(VARIANTS)])]
    for number in range(PAIRS):
        scene, later, question = pair(clip, number)
        asked.append((some_frames(features, [clip.starts[scene], later]), [question]))
    found = []
    for medium, questions in asked:
        encoded = model.video_encoder.connect([medium])
        for question in questions:
            ids = torch.tensor([processor.question_tokens(question.text)])
            found.append(model.build_context(encoded, ids).tokens[0].half())
    return found


class Talks(Examples):
    """Kept contexts with many questions about each; the last one is the compressor's."""

    def __init__(
        self,
        contexts: KeptContexts,
        processor: TDCProcessor,
        size: int,
        batch: int,
        seed: int,
        mixture: Mixture = talks,
    ) -> None:
        super().__init__(contexts.clips, size, batch, mixture, True, seed)
        self.contexts, self.tokenizer = contexts, processor.tokenizer
        self.config = processor.config
        # 2 KB and 1.5 ms each.
        self._story = cache(lambda index: torch.from_numpy(story_labels(self.features.clip(index))))
        self._asked_of = cache(lambda index, number: heard(self.features.clip(index), number))

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**super().__getitem__(number), "progress": number / self.size}

    def _look(self, rng: Random, caption: bool) -> dict[str, Any]:
        """Two frames, with questions about the objects of the first."""
        index, clip = self._pick(ONE + TWO + FULL, rng)
        number = rng.randrange(PAIRS)
        scene, _, last = pair(clip, number)
        salt = rng.getrandbits(32)
        questions = ask(only(clip, scene), FRAME_TURNS, kinds=LOOKED_UP, salt=salt)
        return self._example(index, VARIANTS + number, talk_turns(questions, rng), last)

    def _frame(self, rng: Random, caption: bool) -> dict[str, Any]:
        """Two frames, with questions about both."""
        index, clip = self._pick(ONE + TWO + FULL, rng)
        number = rng.randrange(PAIRS)
        scene, later, last = pair(clip, number)
        if caption:
            turns = [Turn(FRAME_PROMPT, frame_caption(clip, later))]
        else:
            salt = rng.getrandbits(32)
            kinds = SEARCHED if rng.random() < 0.8 else None
            questions = ask_frame(clip, later, FRAME_TURNS, kinds=kinds, salt=salt)
            kinds = STILL if rng.random() < 0.3 else LOOKED_UP
            questions += ask(only(clip, scene), FRAME_TURNS, kinds=kinds, salt=salt)
            turns = talk_turns(questions, rng)
        return self._example(index, VARIANTS + number, turns, last)

    def _order(self, rng: Random, caption: bool) -> dict[str, Any]:
        return self._asked(TWO, ORDER, rng)

    def _scenes(self, rng: Random, caption: bool) -> dict[str, Any]:
        return self._asked(TWO + FULL, OF_A_SCENE, rng)

    def _sounds(self, rng: Random, caption: bool) -> dict[str, Any]:
        return self._asked(TWO + FULL, BY_SOUND, rng)

    def _events(self, rng: Random, caption: bool) -> dict[str, Any]:
        return self._asked(ONE + TWO + FULL, EVENTS, rng)

    def _changes(self, rng: Random, caption: bool) -> dict[str, Any]:
        return self._asked(ONE + TWO + FULL, CHANGES, rng)

    def _asked(self, places: tuple[int, ...], kinds: Sequence[str], rng: Random) -> dict[str, Any]:
        index, clip = self._pick(places, rng)
        questions = ask(clip, 2 * FRAME_TURNS, kinds=kinds, salt=rng.getrandbits(32))
        return self._whole(index, clip, talk_turns(questions, rng), rng)

    def _contrast(self, rng: Random, caption: bool) -> dict[str, Any]:
        return self._same(TWO, rng)

    def _contrasts(self, rng: Random, caption: bool) -> dict[str, Any]:
        return self._same(TWO + FULL, rng)

    def _same(self, places: tuple[int, ...], rng: Random) -> dict[str, Any]:
        """The same question about several scenes: only the scene's name tells the answers apart."""
        index, clip = self._pick(places, rng)
        questions = contrasts(clip, self._kinds, rng)[: 2 * FRAME_TURNS]
        return self._whole(index, clip, talk_turns(questions, rng), rng)

    def _about(self, index: int, clip: Clip, caption: bool, rng: Random) -> dict[str, Any]:
        return self._whole(index, clip, self.turns_about(clip, caption, rng), rng)

    def _whole(self, index: int, clip: Clip, turns: Sequence[Turn], rng: Random) -> dict[str, Any]:
        number = rng.randrange(VARIANTS)
        return self._example(index, number, turns, self._asked_of(index, number))

    def _example(
        self, index: int, which: int, turns: Sequence[Turn], last: Question
    ) -> dict[str, Any]:
        turns = [turn for turn in turns if turn.question != last.text]
        turns.append(Turn(last.text, last.answer, last.scene, last.flash))
        context = self.contexts[index, which]
        whole = which < VARIANTS
        clip = self.features.clip(index)
        story = told(clip, self._story(index), len(context) if whole else 0, self.config)
        return {"context": context, "stories": story, **self._encode(turns, whole)}

    def _encode(self, turns: Sequence[Turn], whole: bool) -> dict[str, list[int]]:
        """The chat template's tokens after the medium, in one tokenizer call; ``whole``: with the
        question's scene and flash as labels at its end."""
        pieces = [f"{_QUESTION} {turn.question} {_ANSWER}" for turn in turns]
        pieces += [f"{turn.answer} {_END}" for turn in turns]
        parts = self.tokenizer(pieces, add_special_tokens=False).input_ids
        made: dict[str, list[int]] = {name: [] for name in PADDINGS}
        for number, turn in enumerate(turns):
            asked, said = parts[number], parts[len(turns) + number]
            made["ids"] += asked + said
            made["labels"] += [IGNORE_INDEX] * len(asked) + said
            made["turns"] += [number] * len(asked + said)
            for name, label in (("scenes", turn.scene), ("flashes", turn.flash)):
                about = label if whole and label is not None else UNASKED
                made[name] += [*[UNASKED] * (len(asked) - 1), about, *[UNASKED] * len(said)]
        return made


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: lists of ``context``, ``stories`` and ``progress``; and int64 ``[B, T]``, padded on
    the right, of ``ids``, ``labels``, ``turns`` and, at the end of each question, the ``scenes``
    and ``flashes`` it is about."""
    rows = {name: pad_rows([e[name] for e in examples], x)[0] for name, x in PADDINGS.items()}
    lists = {name: [e[name] for e in examples] for name in ("context", "stories", "progress")}
    return {**lists, **rows}


class LanguageAlone(nn.Module):
    """The language model with its auxiliary losses: :class:`tiny.recipe.story_labels.Stories` and
    the attention and word losses. Its output layer is left out, being tied to the input's."""

    def __init__(self, model: TDCForConditionalGeneration) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.layers = model.language_model.model.requires_grad_(True)
        self.layers.config.use_cache = False
        text = model.config.text_config
        self.stories = Stories(text.hidden_size, text.num_hidden_layers)

    def forward(
        self,
        context: list[Tensor],
        stories: list[Tensor],
        ids: Tensor,
        labels: Tensor,
        turns: Tensor,
        scenes: Tensor,
        flashes: Tensor,
        progress: list[float],
    ) -> dict[str, Tensor]:
        embed = self.layers.embed_tokens
        rows = [torch.cat([c, embed(row)]) for c, row in zip(context, ids, strict=True)]
        lengths = (turns >= 0).sum(1) + torch.tensor([len(c) for c in context])
        found: dict[int, tuple[Tensor, ...]] = {}
        for some in lengths.argsort().split(TOGETHER):
            read = self._read([rows[i] for i in some], turns[some], lengths[some])
            found.update(zip(some.tolist(), read, strict=True))
        layers = list(zip(*(found[i] for i in range(len(rows))), strict=True))
        answers = labels != IGNORE_INDEX
        says = zip(layers[-1], context, answers, strict=True)
        said = torch.cat([h[len(c) - 1 + answer.nonzero()[:, 0]] for h, c, answer in says])
        scores = said @ embed.weight.T
        targets = labels[answers]
        right = (scores.argmax(-1) == targets).float().mean()
        asked = (scenes != UNASKED) | (flashes != UNASKED)
        ends = [
            torch.cat([h[len(c) + x.nonzero()[:, 0]] for h, c, x in zip(*at, strict=True)])
            for at in ((layer, context, asked) for layer in layers)
        ]
        loss = F.cross_entropy(scores, targets) + self.stories(layers, stories)
        loss = loss + self.stories.about(ends, scenes[asked], flashes[asked])
        middle = layers[self.stories.layers[0]]
        looks = zip(middle, stories, turns, scenes, flashes, progress, strict=True)
        errors = [look_errors(self.layers, *of) for *of, now in looks if now >= LOOKING]
        texts = (h[len(c) :] for h, c in zip(middle, context, strict=True))
        asking = (labels == IGNORE_INDEX) & (turns >= 0)
        words = zip(texts, ids, turns, asking, progress, strict=True)
        repeats = [word_errors(embed.weight, *of) for *of, now in words if now >= REPEATING]
        loss = loss + _mean(errors) + _mean(repeats)
        return {"loss": loss, "accuracy": right}

    def _read(self, rows: list[Tensor], turns: Tensor, lengths: Tensor) -> list[tuple[Tensor, ...]]:
        """Hidden states ``[N, D]`` of every row, before the first layer and after each one."""
        size = int(lengths.max())
        inputs = nn.utils.rnn.pad_sequence([row[:size] for row in rows], batch_first=True)
        mask, positions = separate(around_media(turns, lengths, size))
        read = self.layers(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=positions,
            output_hidden_states=True,
        )
        return list(zip(*read.hidden_states, strict=True))


def _mean(errors: list[Tensor]) -> Tensor | int:
    """Mean over all tensors; 0 for none."""
    joined = torch.cat(errors) if errors else torch.empty(0)
    return joined.mean() if len(joined) else 0


class StopAfter(TrainerCallback):
    """Ends training after some steps, before the learning rate's schedule does."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= self.steps
