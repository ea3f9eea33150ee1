# SPDX-License-Identifier: Apache-2.0
"""Checked records as a torch dataset.

Any other torch dataset does as well: the collator takes whatever examples it gives (see
:func:`tdc.train.records.parse`), tower features instead of files included.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch.utils.data import Dataset

from .records import Record, read_records


class RecordDataset(Dataset):
    """Records of LLaVA-style lists; arguments and errors: ``records.read_records``."""

    def __init__(
        self,
        files: Sequence[str | os.PathLike[str]],
        folder: str | os.PathLike[str] = ".",
        on_bad_record: str = "refuse",
        kinds: Sequence[str | None] = ("image", "video", None),
    ) -> None:
        self.records = read_records(files, folder, on_bad_record, kinds)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def after(self, record: Record) -> Record:
        """The next record, for one whose medium turns out to be unreadable."""
        return self.records[(record.number + 1) % len(self.records)]
