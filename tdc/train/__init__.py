# SPDX-License-Identifier: Apache-2.0
"""Training on transformers' Trainer, accelerate and PEFT: ``tdc train``.

    config.py         the settings, from a YAML file
    records.py        LLaVA-style JSON lists, read and checked
    dataset.py        records, or anything that gives examples, as a torch dataset
    conversation.py   an example's token ids, labels on its answers, the Q-Former's question
    collator.py       examples -> one batch
    tower_features.py media of a batch -> ``VideoFeatures``, inside the model's forward
    feature_store.py  what frozen towers gave for a file, kept on disk
    stages.py         what each stage trains
    starting_model.py the model that a stage begins with
    trainer.py        all of that into a ``transformers.Trainer``
    merge.py          LoRA weights into the model

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
