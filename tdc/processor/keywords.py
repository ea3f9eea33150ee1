# SPDX-License-Identifier: Apache-2.0
"""Keywords of the processor: what has no effect is an error that names it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError, listed

# Keywords that transformers and its users pass to every processor, with the values that ask for
# what this one does anyway.
_USUAL: dict[str, tuple[Any, ...]] = {
    "padding": (True, False, "longest"),
    "padding_side": ("left",),
    "truncation": (False, "do_not_truncate"),
    "max_length": (),
    "return_attention_mask": (True,),
    "return_token_type_ids": (False,),
    "return_mm_token_type_ids": (False,),
    "return_offsets_mapping": (False,),
    "return_assistant_tokens_mask": (False,),
    "sanitize_control_tokens": (True, False),
    "load_audio_from_video": (True,),
    "do_sample_frames": (True,),
    "sampling_rate": (16_000,),
    "return_tensors": ("pt",),
    "verbose": (True, False),
    "device": (),
    "tools": (),
    "documents": (),
}
_NESTED = ("text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs", "common_kwargs")


def check_keywords(given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse keywords that would have no effect.

    Args:
        given: keywords beyond those of the signature.
        known: names of the signature, for the message.

    Raises:
        InputError: an unknown keyword, or a usual one with a value that is not supported.
    """
    direct = {name: value for name, value in given.items() if name not in _NESTED}
    check_names(direct, [*known, *_USUAL], "keyword", listed(known))
    usual = dict(direct)
    for group in _NESTED:
        nested = given.get(group) or {}
        check_names(nested, list(_USUAL), f"key of {group}")
        usual |= nested
    for name, value in usual.items():
        if value is None or name not in _USUAL or value in _USUAL[name]:
            continue
        expected = " or ".join(map(repr, _USUAL[name])) or "None"
        raise InputError(f"keyword {name} is {value!r:.40}; expected {expected}")


def check_names(
    given: Mapping[str, Any], known: Sequence[str], what: str, expected: str = ""
) -> None:
    """Refuse unknown names; the message names the nearest known one, or ``expected``.

    None as a value is as good as no key: data sets fill in what a row lacks.
    """
    for name, value in given.items():
        if name in known or value is None:
            continue
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected {expected or listed(known)}"
        raise InputError(f"unknown {what} {name!r}; {hint}")
