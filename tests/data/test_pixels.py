"""Images of more than 8 bits, palettes and transparency, without torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acdc_export.data.pixels import open_rgb
from acdc_export.errors import UsageError

Image = pytest.importorskip("PIL.Image")

LEVELS = np.array([[0, 257, 32768, 65535]], np.uint16)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_grey_of_16_bits_is_read_by_its_full_range(tmp_path: Path, name: str) -> None:
    Image.fromarray(LEVELS).save(tmp_path / name)
    image = open_rgb(tmp_path / name)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[0], np.repeat([[0], [1], [128], [255]], 3, axis=1))


def test_a_dark_image_stays_dark(tmp_path: Path) -> None:
    """The range is that of the type, not of the image: otherwise each image would get a brightness of its own."""
    Image.fromarray(LEVELS // 100).save(tmp_path / "dark.png")
    assert np.asarray(open_rgb(tmp_path / "dark.png")).max() == 3


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_images_of_8_bits_are_as_pillow_has_them(tmp_path: Path, mode: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    path = tmp_path / "image.tif"
    Image.fromarray(levels).convert(mode).save(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(open_rgb(path)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("levels", [np.float32([[0, 3.5]]), np.float32([[-1, 1]]), np.float32([[np.nan, 1]])])
def test_numbers_without_a_range_are_refused(tmp_path: Path, levels: np.ndarray) -> None:
    Image.fromarray(levels).save(tmp_path / "odd.tif")
    with pytest.raises(UsageError, match=r"odd.tif can't be read: .*grey levels from"):
        open_rgb(tmp_path / "odd.tif")
