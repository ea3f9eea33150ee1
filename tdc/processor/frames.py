# SPDX-License-Identifier: Apache-2.0
"""Arrays, tensors and pictures to uint8 frames, in the layouts and number types that are in use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import InputError, shown
from ..media.source import opened
from ..media.video import read_image

_PICTURES = (".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_EXPECTED = {
    "video": "uint8 [T, H, W, 3] or [T, 3, H, W], T >= 1",
    "image": "uint8 [H, W, 3] or [3, H, W]",
}


def is_picture(value: Any) -> bool:
    """Whether a list of such is one video: PIL images, arrays of one frame, names of stills."""
    if isinstance(value, (str, os.PathLike)):
        name = str(value)
        return name[-5:].lower().endswith(_PICTURES) or name[:11].lower() == "data:image/"
    return isinstance(value, Image.Image) or (is_array(value) and np.ndim(value) == 3)


def picture(value: Any) -> np.ndarray:
    """uint8 ``[H, W, 3]`` of a still: a file in any form, a PIL image or an array.

    Raises:
        InputError: what is no still.
    """
    with opened(value, "image") as found:
        if isinstance(found, os.PathLike):
            return read_image(found)
    if isinstance(value, Image.Image):
        try:
            return np.asarray(ImageOps.exif_transpose(value).convert("RGB"))
        except (
            OSError,
            ValueError,
            SyntaxError,
        ) as error:  # a file that PIL opened and that is cut off
            raise InputError(f"image cannot be read: {error}") from None
    return rgb(value, "image")


def stacked(pictures: Sequence[Any]) -> np.ndarray:
    """uint8 ``[T, H, W, 3]`` of stills of one size.

    Raises:
        InputError: none, or of several sizes.
    """
    frames = [picture(one) for one in pictures]
    sizes = {frame.shape[1::-1] for frame in frames}
    if len(sizes) != 1:
        found = " and ".join(f"{w} x {h}" for w, h in sorted(sizes)[:2])
        found = f"of pictures of {found}" if found else "without a picture"
        raise InputError(f"video is a list {found}; expected pictures of one size")
    return np.stack(frames)


def rgb(value: Any, what: str) -> np.ndarray:
    """uint8 pixels, channels last, of an array or tensor with 1 (grey), 3 or 4 (RGBA) channels.

    Args:
        what: ``"video"`` (``[T, H, W, C]`` or ``[T, C, H, W]``) or ``"image"`` (without T).

    Raises:
        InputError: another shape or number type, or one that may mean two things.
    """
    array, dimensions = as_array(value, what), 4 if what == "video" else 3
    if array.ndim != dimensions or not array.size:
        raise InputError(f"{what} is {_described(array)}; expected {_EXPECTED[what]}")
    first, last = array.shape[-3], array.shape[-1]
    axes = [axis for axis, n in ((-3, first), (-1, last)) if n == 3]
    axes = axes or [axis for axis, n in ((-3, first), (-1, last)) if n in (1, 4)]
    if len(axes) != 1:
        both = "may have its channels first or last" if axes else "has no axis of 3 channels"
        raise InputError(f"{what} is {_described(array)}, which {both}; expected {_EXPECTED[what]}")
    pixels = np.moveaxis(_bytes(array, what), axes[0], -1)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return np.ascontiguousarray(pixels[..., :3])


def as_array(value: Any, what: str) -> np.ndarray:
    """NumPy's view of a tensor on any device, an array, or nested lists of numbers.

    Raises:
        InputError: what is none of these.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RecursionError, OverflowError):  # ragged or endless lists
        array = np.empty(0, object)
    if array.dtype.kind not in "biufc":
        raise InputError(f"{what} is {shown(value)}; expected a file or an array")
    return array


def _bytes(array: np.ndarray, what: str) -> np.ndarray:
    """The same pixels as uint8: floats are of [0, 1], or whole numbers up to 255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise InputError(f"{what} is {_described(array)}; expected {_EXPECTED[what]}")
    low, high = float(array.min()), float(array.max())
    if low >= 0 and high <= 1:
        return np.rint(array * array.dtype.type(255)).astype(np.uint8)
    if low >= 0 and high <= 255 and (array == np.rint(array)).all():
        return array.astype(np.uint8)
    raise InputError(
        f"{what} holds floats of {low:g} to {high:g}; expected [0, 1], or uint8 of 0 to 255"
    )


def _described(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def is_array(value: Any) -> bool:
    """NumPy's or torch's."""
    return isinstance(value, (np.ndarray, torch.Tensor))
