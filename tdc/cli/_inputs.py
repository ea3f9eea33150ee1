# SPDX-License-Identifier: Apache-2.0
"""Looking at the arguments' files before anything slow happens."""

from __future__ import annotations

from tdc.errors import InputError


def check_media(video: str, audio: str | None = None) -> None:
    """Refuse a file that is no video, and a sound file without sound, before a model is loaded.

    Raises:
        InputError: what is wrong with the file.
    """
    from tdc.audio import has_audio
    from tdc.video import probe

    probe(video)
    if audio and not has_audio(audio):
        raise InputError(f"--audio: {audio} has no audio track; expected a file with sound")
