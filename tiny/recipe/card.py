# SPDX-License-Identifier: Apache-2.0
"""The finished model as it ships: bf16 weights, configuration, tokenizers, and how it was made."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from tdc.files import whole_folder
from tdc.model import TDCForConditionalGeneration
from tdc.processor.processor import TDCProcessor

if TYPE_CHECKING:
    from .settings import Recipe

CARD = """\
---
license: apache-2.0
library_name: tdc
pipeline_tag: image-text-to-text
---

# Tiny TDC

The complete model of Temporal Dynamic Context (arXiv 2504.10443) at {millions:.1f} M parameters,
for tests, demonstrations and ablations. It answers short questions about clips that `python -m
tiny.world` draws: shapes, colors, places, movements, flashes, sounds, their order. It knows the
{words} words of that world and nothing else: what it says about any other video means nothing.

- **Parts**: DINOv2 and SigLIP towers, SVA connector, BEATs, Q-Former, Qwen2 decoder: the classes
  of every other TDC.
- **Data**: drawn by seed; no picture, sound, text or weight of anybody else. Clips of the test
  split share no combination of shape, color and background with those it was trained on.
- **Training**: seed {seed}, batches of {batch}, by `python -m tiny.recipe`:

| step | examples |
|---|---:|
| SigLIP and DINOv2 towers on dense labels, pictures each | {pictures:,} |
| BEATs on the sound of every second, stretches of sound | {sounds:,} |
| the connector on labels of every token, frames | {labelled_frames:,} |
| stage 1: pictures | {images:,} |
| the connector on labels again, at the 16 tokens of a video frame, frames | {labelled_frames:,} |
| the compressor on labels of every place, pairs of frames | {labelled_pairs:,} |
| the language model alone, on kept contexts of clips, with labels of what they tell | {talks:,} |
| stage 2: videos | {videos:,} |
| stage 3: videos with sound, LoRA on the language model, merged | {audio_visual:,} |

- **Made with** torch {torch}, transformers {transformers}.
- **What it gets right**, kind by kind, and how it was measured: `docs/tiny.md` of TDC Kernels.

```python
from tdc.checkpoints.load import load_model

loaded = load_model()  # this model
```
"""


def write_finished(recipe: Recipe, merged: Path, out: Path) -> None:
    """Write the folder that ``tdc chat --model`` takes; it appears whole or not at all."""
    kind: Any = TDCForConditionalGeneration
    model = kind.from_pretrained(merged, dtype=torch.bfloat16)
    processor = TDCProcessor.from_pretrained(merged)
    card = CARD.format(
        **asdict(recipe),
        millions=sum(p.numel() for p in model.parameters()) / 1e6,
        words=len(processor.tokenizer),
        torch=torch.__version__.partition("+")[0],
        transformers=transformers.__version__,
    )
    with whole_folder(out) as work:
        model.save_pretrained(work)
        processor.save_pretrained(work)
        (work / "README.md").write_text(card, encoding="utf-8")
