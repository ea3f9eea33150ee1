# SPDX-License-Identifier: Apache-2.0
"""Training on transformers' Trainer, accelerate and PEFT: ``tdc train``.

    config.py         the settings, from a YAML file
    stages.py         what each stage trains
    starting_model.py the model that a stage begins with
    trainer.py        all of that into a ``transformers.Trainer``
    merge.py          LoRA weights into the model
    data/
      records.py      LLaVA-style JSON lists, read and checked
      conversation.py an example's token ids, labels on its answers, the Q-Former's question
      collator.py     examples -> one batch
      media_batch.py  its media -> ``VideoFeatures``, inside the model's forward

docs/training.md is the manual.
"""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import InputError


def check_installed() -> None:
    """Refuse to start without the packages of the extra ``train``.

    Raises:
        InputError: which of them is missing.
    """
    for package in ("yaml", "peft", "tensorboard"):
        if find_spec(package) is None:
            raise InputError(
                f"{package} is not installed; it comes with the extra 'train' (README, Install)"
            )
