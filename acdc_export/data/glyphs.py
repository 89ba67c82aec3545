"""`glyphs`: digits and letters in 16 typefaces, turned, sheared, cluttered, blurred and noisy; 24x24 and grey.

The images are drawn, not downloaded: Pillow draws them in the typefaces that matplotlib carries. Every part has random
numbers of its own, so parts share classes and typefaces but no image. The same versions of Pillow, matplotlib and numpy
give the same images, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..extras import extra

if TYPE_CHECKING:
    from PIL.Image import Image

CLASSES = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZabdefghnqrt"
"""The classes; a label is the index of one.

The capitals I and O are missing, since some typefaces don't tell them from 1 and 0. Small letters are there if they are
more than a smaller capital, as in EMNIST's balanced classes (Cohen et al. 2017).
"""

TYPEFACES = tuple(
    f"{family}{style}"
    for family, styles in {
        "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
        "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
    }.items()
    for style in styles
)

_SIDE = 24  # pixels of an image
_DRAWING = 48  # pixels of the drawing that is turned and scaled into it
_SEED = 20210623
_MEAN, _DEVIATION = 128.3, 83.9  # of the 256 grey levels, over all images


def _part(stream: int, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw `count` images, float32 (count, 1, 24, 24) of mean 0 and deviation 1, and their labels, int64 (count,).

    The classes are equally frequent, but for one image.
    """
    random = np.random.default_rng([_SEED, stream])
    labels = random.permutation(np.arange(count, dtype=np.int64) % len(CLASSES))
    with extra("train"):
        ink = np.stack([_ink(random, label) for label in labels]) / 255

    def per_image(low: float, high: float) -> NDArray[np.float64]:
        return random.uniform(low, high, (count, 1, 1))

    slope = np.linspace(-0.1, 0.1, _SIDE)
    paper = 0.15 + per_image(-1, 1) * slope[:, None] + per_image(-1, 1) * slope
    images = paper + per_image(0.4, 0.75) * ink
    images = np.where(per_image(0, 1) < 0.5, images, 1 - images)  # dark on light as often as light on dark
    images += per_image(0.01, 0.09) * random.normal(size=images.shape)
    # Grey levels are whole numbers, so that no processor's way of rounding shows.
    levels = np.rint(255 * images.clip(0, 1))
    return ((levels - _MEAN) / _DEVIATION).astype(np.float32)[:, None], labels


def _ink(random: np.random.Generator, label: int) -> NDArray[np.uint8]:
    """Draw the glyph in the middle, and pieces of up to two others at the rim; (24, 24), 0 to 255."""
    from PIL import ImageChops, ImageFilter

    ink = _placed(random, label)
    for _ in range(random.integers(3)):
        ink = ImageChops.lighter(ink, _placed(random, int(random.integers(len(CLASSES))), aside=13))
    return np.asarray(ink.filter(ImageFilter.GaussianBlur(random.uniform(0, 1.0))))


def _placed(random: np.random.Generator, label: int, aside: float = 0) -> Image:
    """Turn, shear, stretch and move the glyph: about to the middle of the image, or `aside` pixels from it."""
    from PIL import Image

    drawing = _drawing(TYPEFACES[random.integers(len(TYPEFACES))], CLASSES[label])
    angle, shear, direction = random.uniform((-0.4, -0.3, 0), (0.4, 0.3, 2 * math.pi))
    size, width = random.uniform((0.7, 0.85), (1.1, 1.2))
    x, y = random.uniform(-2.5, 2.5, 2) + _SIDE / 2
    x, y = x + aside * math.cos(direction), y + aside * math.sin(direction)
    # Pillow wants the inverse transform, from a pixel of the image to its place in the drawing.
    scale, cos, sin = _DRAWING / _SIDE / size, math.cos(angle), math.sin(angle)
    a, b = scale * cos / width, scale * (shear * cos - sin)
    c, d = scale * sin / width, scale * (shear * sin + cos)
    middle = _DRAWING / 2
    matrix = (a, b, middle - a * x - b * y, c, d, middle - c * x - d * y)
    return drawing.transform((_SIDE, _SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


@cache
def _drawing(typeface: str, glyph: str) -> Image:
    """Draw the glyph white on black, in the middle of a square of 48 pixels."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(_fonts() / f"{typeface}.ttf", 0.7 * _DRAWING)
    drawing = Image.new("L", (_DRAWING, _DRAWING))
    left, top, right, bottom = font.getbbox(glyph)
    corner = (_DRAWING - left - right) / 2, (_DRAWING - top - bottom) / 2
    ImageDraw.Draw(drawing).text(corner, glyph, fill=255, font=font)
    return drawing


def _fonts() -> Path:
    """The folder of matplotlib's typefaces. Importing matplotlib would take a second, so its module is only looked up.

    Raises:
        ModuleNotFoundError: matplotlib or its typefaces are missing.
    """
    module = find_spec("matplotlib")
    folder = Path(module.origin or "").parent / "mpl-data" / "fonts" / "ttf" if module else Path()
    if not (folder / f"{TYPEFACES[0]}.ttf").is_file():  # some systems package matplotlib without them
        raise ModuleNotFoundError(name="matplotlib with its typefaces")
    return folder


PARTS: Mapping[str, Callable[[], tuple[NDArray[Any], NDArray[Any]]]] = {
    "train": partial(_part, 0, 10_000),
    "validation": partial(_part, 1, 2_500),
    "test": partial(_part, 2, 5_000),
}
