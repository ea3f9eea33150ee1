# SPDX-License-Identifier: Apache-2.0
"""Keywords of the processor: what has no effect is an error that names it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError, listed, shown
from .video_sampling import ALIASES, NAMES, refuse

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
    "return_tensors": ("pt",),
    "verbose": (True, False),
    "device": (),
    "tools": (),
    "documents": (),
}
# Groups of keywords, and which of their keys mean something.
_NESTED: dict[str, tuple[str, ...]] = {
    "text_kwargs": (),
    "images_kwargs": (),
    "videos_kwargs": (*NAMES, *ALIASES),
    "audio_kwargs": ("sampling_rate",),
    "common_kwargs": (),
}


def read_keywords(given: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Refuse keywords that would have no effect; the others that mean something, without groups.

    Args:
        given: keywords beyond those of the signature, and of these the ones that a group may name.
        known: names of the signature, for the message.

    Raises:
        InputError: an unknown keyword, a usual one with a value that is not supported, or one that
            comes twice.
    """
    direct = {name: value for name, value in given.items() if name not in _NESTED}
    refuse(direct, "keyword")
    check_names(direct, [*known, *ALIASES, *_USUAL], "keyword", listed(known))
    found = {name: value for name, value in direct.items() if value is not None}
    for group, names in _NESTED.items():
        nested = given.get(group)
        if nested is None:
            continue
        if not isinstance(nested, Mapping):
            raise InputError(f"{group} is {shown(nested)}; expected a dict")
        refuse(nested, f"key of {group}")
        check_names(nested, [*names, *_USUAL], f"key of {group}")
        for name, value in nested.items():
            if value is not None and name in names and name in found:
                raise InputError(f"{name} stands in {group} as well; expected one of them")
            if value is not None:
                found[name] = value
    for name in found.keys() & _USUAL.keys():
        value = found.pop(name)
        if not any(isinstance(value, type(usual)) and value == usual for usual in _USUAL[name]):
            expected = " or ".join(map(repr, _USUAL[name])) or "None"
            raise InputError(f"keyword {name} is {shown(value, 40)}; expected {expected}")
    return found


def check_names(
    given: Mapping[Any, Any], known: Sequence[str], what: str, expected: str = ""
) -> None:
    """Refuse unknown names; the message names the nearest known one, or ``expected``.

    None as a value is as good as no key: data sets fill in what a row lacks.
    """
    for name, value in given.items():
        if name in known or value is None:
            continue
        near = difflib.get_close_matches(name, known, 1) if isinstance(name, str) else []
        hint = f"did you mean {near[0]!r}?" if near else f"expected {expected or listed(known)}"
        raise InputError(f"unknown {what} {shown(name)}; {hint}")


def check_values(progress: Any, add_special_tokens: Any, return_tensors: Any) -> None:
    """Refuse values of these keywords of the processor that are none."""
    if progress is not None and not callable(progress):
        raise InputError(f"progress is {shown(progress)}; expected a function of done and total")
    if add_special_tokens is not None and not isinstance(add_special_tokens, bool):
        raise InputError(f"add_special_tokens is {shown(add_special_tokens)}; expected a bool")
    if return_tensors is not None and not (
        isinstance(return_tensors, str) and return_tensors == "pt"
    ):
        raise InputError(f"return_tensors is {shown(return_tensors)}; expected 'pt'")


def texts_of(given: Any, name: str, expected: str) -> list[str]:
    """A list of texts from one or several.

    Raises:
        InputError: none, or what is no text.
    """
    if given is None:
        raise InputError(f"{name} is missing; expected {expected}")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not texts:
        raise InputError(f"{name} is {shown(given)}; expected {expected}")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"{name} holds {shown(text)}; expected {expected}")
    return list(texts)
