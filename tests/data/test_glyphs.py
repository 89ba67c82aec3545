import hashlib
import sys
from importlib.metadata import version

import numpy as np
import pytest

from acdc_export.data import glyphs, load
from acdc_export.errors import RuntimeUnavailable, UsageError

COUNTS = {"train": 10_000, "validation": 2_500, "test": 5_000}
PINNED = {"pillow": "13.0.0", "matplotlib": "3.11.2", "numpy": "2.4.6"}
RECORDED = "710944612e278ba38d595f0bb5c5cd917cca16bc60b098b9f443db4bed3e5717"


def arrays(part):
    data = load(f"glyphs:{part}")
    (batch,) = data.batches(COUNTS[part])
    assert data.count == COUNTS[part] == len(batch[1])
    return batch


@pytest.fixture(scope="module")
def parts():
    return {part: arrays(part) for part in COUNTS}


@pytest.mark.parametrize("part", COUNTS)
def test_each_part_holds_every_class_equally_often(parts, part):
    x, y = parts[part]
    assert (x.dtype, x.shape, y.dtype) == (np.float32, (COUNTS[part], 1, 24, 24), np.int64)
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02
    counts = np.bincount(y, minlength=45)
    assert (len(counts), counts.max() - counts.min()) == (45, 1)


def test_no_image_is_in_two_parts_or_twice_in_one(parts):
    assert len({image.tobytes() for x, _ in parts.values() for image in x}) == sum(COUNTS.values())


def test_whatever_was_drawn_before_the_images_are_the_same(parts):
    np.random.seed(3)
    for before, again in zip(parts["validation"], arrays("validation"), strict=True):
        np.testing.assert_array_equal(again, before)


@pytest.mark.skipif({name: version(name) for name in PINNED} != PINNED, reason=f"recorded with {PINNED}")
def test_the_pinned_versions_draw_the_images_on_record(parts):
    x, y = parts["validation"]
    assert hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest() == RECORDED


def unit(rows):
    """Flatten rows to mean 0 and length 1, so that their products are correlations."""
    flat = rows.reshape(len(rows), -1) - rows.mean((1, 2))[:, None]
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def ink(parts):
    """The distance of each pixel from the colour of the paper, (N, 24, 24)."""
    return {part: np.abs(x - np.median(x, (2, 3), keepdims=True))[:, 0] for part, (x, _) in parts.items()}


def test_a_label_is_the_index_of_what_is_drawn(parts, ink):
    _, labels = parts["train"]
    means = np.stack([ink["train"][labels == label].mean(0) for label in range(45)])
    drawings = np.stack([np.asarray(glyphs._drawing("DejaVuSans", glyph), dtype=float) for glyph in glyphs.CLASSES])
    small = drawings.reshape(45, 24, 2, 24, 2).mean((2, 4))
    alike = (unit(means) @ unit(small).T).argmax(1)
    assert (alike == np.arange(45)).sum() > 10  # one by chance


def test_the_images_are_no_easy_ones(parts, ink):
    """The most similar training image is often of another class."""
    nearest = (unit(ink["test"]) @ unit(ink["train"]).T).argmax(1)
    accuracy = (parts["train"][1][nearest] == parts["test"][1]).mean()
    assert 0.2 < accuracy < 0.8


@pytest.mark.parametrize("typeface", glyphs.TYPEFACES)
def test_a_typeface_draws_every_class_whole_and_its_own_way(typeface):
    drawings = [np.asarray(glyphs._drawing(typeface, glyph)) for glyph in glyphs.CLASSES]
    assert len({drawing.tobytes() for drawing in drawings}) == len(glyphs.CLASSES) == 45
    for drawing in drawings:
        assert drawing.max() == 255
        assert max(edge.max() for edge in (drawing[0], drawing[-1], drawing[:, 0], drawing[:, -1])) == 0


def test_unknown_parts_are_refused():
    with pytest.raises(UsageError, match="did you mean 'train'"):
        load("glyphs:trian")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    def refused(message):
        glyphs._drawing.cache_clear()
        with pytest.raises(RuntimeUnavailable, match=message) as caught:
            load("glyphs:validation")
        assert caught.value.remedy == "Run: pip install 'acdc-export[train]'"

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "PIL", None)
        refused("PIL is not installed")
    with monkeypatch.context() as patch:
        patch.setattr(glyphs, "find_spec", lambda name: None)
        refused("matplotlib with its typefaces is not installed")
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").touch()  # as some systems package it
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.delitem(sys.modules, "matplotlib", raising=False)
        refused("matplotlib with its typefaces is not installed")
