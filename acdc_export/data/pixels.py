"""An image file as RGB of 8 bits, whatever it holds: grey of 16 bits, palettes, transparency, CMYK.

What has more than 8 bits is scaled by the full range of its type, so that black stays black and white white; Pillow
alone would cut all values at 255. Everything else is as torchvision's and most other training loaders have it:
transparency is dropped (it doesn't show in the colours), and the orientation in a camera's notes (EXIF) is not applied.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from .importing import reason

if TYPE_CHECKING:
    from PIL.Image import Image

_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1  # of TIFF


def open_rgb(path: str | Path) -> Image:
    """Read the image at `path` as RGB. Raises `UsageError` if it can't be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return rgb(image)
    except Exception as error:  # the decoders each have their own
        raise UsageError(
            f"The image {path} can't be read: {reason(error)}.", "Repair it, or take it out of the folder."
        ) from error


def rgb(image: Image) -> Image:
    """Convert to RGB of 8 bits. Raises `ValueError` for numbers whose range is not known."""
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image), 2**16 - 1)
    if image.mode == "I":
        return _grey(np.asarray(image), 2 ** _bits(image) - 1)
    if image.mode == "F":
        return _grey(np.asarray(image), 1)
    if "transparency" in image.info:  # Pillow warns of palettes with transparency that lose it
        image = image.convert("RGBA")
    return image.convert("RGB")


def _grey(levels: np.ndarray, full: int) -> Image:
    """Grey levels from 0 to `full`, scaled to 8 bits."""
    from PIL import Image

    if not (np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= full):
        raise ValueError(f"grey levels from {levels.min():g} to {levels.max():g}; 0 to {full} are wanted")
    return Image.fromarray(np.rint(levels.astype(np.float64) * (255 / full)).astype(np.uint8)).convert("RGB")


def _bits(image: Image) -> int:
    """How many bits the file has for each of the whole numbers that Pillow holds in 32."""
    if image.format in ("PNG", "PPM"):  # PPM of any maximum is scaled to 16 bits by Pillow
        return 16
    tags = getattr(image, "tag_v2", {})
    bits, kind = tags.get(_BITS_PER_SAMPLE), tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    if bits and kind[0] == _UNSIGNED:
        return int(bits[0])
    raise ValueError("grey levels of 32 bits, whose full range the file doesn't tell: save it with 8 or 16")
