# SPDX-License-Identifier: Apache-2.0
"""The released folder: bf16 weights, configuration, tokenizers and the model card."""

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
for tests, demonstrations and ablations. It answers short questions about the clips of a small
drawn world: shapes, colors, places, movements, flashes, sounds, their order. It knows the {words}
words of that world; its answers about any other video mean nothing.

- **Parts**: SigLIP and DINOv2 towers, SVA connector, BEATs, Q-Former, Qwen2 decoder, in the same
  classes as every other TDC.
- **Data**: drawn by `python -m tiny.world` from seeds, without pictures, sounds, texts or weights
  of anybody else. Test clips share no combination of shape, color and background with training.
- **Training**: `python -m tiny.recipe`, seed {seed}, batches of {batch}:

| step | learns from | examples |
|---|---|---:|
| SigLIP tower, DINOv2 tower | labels of every patch | {pictures:,} pictures each |
| BEATs | the sound of every second | {sounds:,} stretches |
| connector | labels of every token | {labelled_frames:,} frames |
| stage 1 | pictures | {images:,} |
| connector again | labels, 16 tokens a frame | {labelled_frames:,} frames |
| compressor | labels of every place | {labelled_pairs:,} pairs of frames |
| language model alone | kept contexts, with labels inside | {talks:,} |
| stage 2 | videos | {videos:,} |
| stage 3 | videos with sound; LoRA, merged | {audio_visual:,} |

- **Made with** torch {torch}, transformers {transformers}.
- **Results**, kind by kind, and how they were measured: `docs/tiny.md` of TDC Kernels.

```python
import tdc

video = tdc.load().watch("clip.mp4")  # without a folder: this model
video.ask("how many scenes are there ?")
```
"""


def write_finished(recipe: Recipe, merged: Path, out: Path) -> None:
    """Write a folder for ``tdc chat --model``; it appears whole or not at all."""
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
