# SPDX-License-Identifier: Apache-2.0
"""``python -m tiny.world.demo_clip``: write the clip and questions of ``tdc demo`` to the package.

A clip of the test split, with questions about a picture, a sound and an order.
"""

from __future__ import annotations

import json
from pathlib import Path

import tdc

from .make import make_clip
from .questions import ask
from .write import write_clip

SEED, NUMBER = 1, 1  # of the test split; docs/tiny.md says how it was chosen
KINDS = ("shape", "sound", "order_color")
SIZE = 192  # pixels a side
FOLDER = Path(tdc.__file__).parent / "assets" / "demo"


def main() -> None:
    clip = make_clip(SEED, NUMBER, split="test", scenes=3)
    questions = [ask(clip, 1, kinds=(kind,))[0] for kind in KINDS]
    FOLDER.mkdir(exist_ok=True)
    # 96 kB in the wheel; 194 kB with 256 pixels a side at the quality of training clips.
    write_clip(FOLDER / "clip.mp4", clip, size=SIZE, crf=28, sound_bits=24_000)
    asked = [{"question": q.text, "answer": q.answer} for q in questions]
    (FOLDER / "questions.json").write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
