import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from acdc_export.data import Data, images, load
from acdc_export.errors import RuntimeUnavailable, UsageError

FORMS = ["imagefolder:", "cifar10:somewhere", "cifar10:somewhere:val", "cifar100::train", "cifar10:test"]
CIFAR = {"cifar10": ("cifar-10-batches-py", "labels", 10), "cifar100": ("cifar-100-python", "fine_labels", 100)}

needs_torchvision = pytest.mark.vision


@pytest.fixture
def torchvision():
    return pytest.importorskip("torchvision", reason="torchvision is not installed")


def picture(path, size=(40, 30), color=(0, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    """Five images a class; their red tells the class."""
    for label, name in enumerate(("ant", "bee", "cat")):
        for index in range(5):
            picture(tmp_path / "photos" / name / f"{index}.png", color=(100 * label, 0, 0))
    return tmp_path / "photos"


@pytest.fixture
def cifar(tmp_path, torchvision, monkeypatch):
    """Return a function that writes files like CIFAR's: 12 grey images of each part, at a path with a colon."""
    home = tmp_path / "c:data"

    def write(name):
        place, key, classes = CIFAR[name]
        source = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
        (home / place).mkdir(parents=True)

        def put(file, content):
            (home / place / file).write_bytes(pickle.dumps(content))
            return torchvision.datasets.utils.calculate_md5(home / place / file)

        entry = {
            "data": np.repeat(np.arange(12, dtype=np.uint8), 3072).reshape(12, 3072),
            key: [*range(10), 0, classes - 1],
        }
        train = [["data_batch_1", put("data_batch_1", entry)]]
        test = [["test_batch", put("test_batch", {**entry, key: [3] * 12})]]
        names = [str(label) for label in range(classes)]
        meta = {"filename": "meta", "key": "names", "md5": put("meta", {"names": names})}
        for attribute, value in {"train_list": train, "test_list": test, "meta": meta}.items():
            monkeypatch.setattr(source, attribute, value)
        return f"{name}:{home}"

    return write


# ------------------------------------------------------------------------------------------------ what a spec says


@pytest.mark.parametrize("spec", FORMS)
def test_other_forms_are_refused(spec):
    for function in (load, lambda spec: images.generated(spec, 4)):
        with pytest.raises(UsageError, match="is not of the form") as caught:
            function(spec)
        assert str(caught.value).count("\n") == 1


def test_a_misspelt_kind_is_recognised():
    with pytest.raises(UsageError, match="did you mean 'imagefolder'"):
        load("imagefoldr:somewhere")


def test_without_torchvision_the_error_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for function in (load, lambda spec: images.augmented(spec, 4)):
        with pytest.raises(RuntimeUnavailable, match="torchvision is not installed") as caught:
            function(f"imagefolder:{folder}")
        assert "acdc-export[vision]" in caught.value.remedy


# ------------------------------------------------------------------------------------------------------ an epoch


@pytest.mark.parametrize(
    ("samples", "batch_size", "kept", "dropped"),
    [
        (50_000, 128, 391, 390),  # CIFAR
        (1_281_167, 256, 5_005, 5_004),  # ImageNet
        (257, 128, 2, 2),  # a last batch of one
        (258, 128, 3, 2),
        (256, 128, 2, 2),
        (3, 1, 3, 3),
        (5, 8, 1, 1),
        (1, 8, 1, 1),
    ],
)
def test_the_steps_of_an_epoch(samples, batch_size, kept, dropped):
    assert images.steps_of(samples, batch_size, drop_last=False) == kept
    assert images.steps_of(samples, batch_size, drop_last=True) == dropped


# -------------------------------------------------------------------------------------------------------- generated


@pytest.mark.parametrize(
    ("spec", "side", "classes"),
    [("imagefolder:nowhere", 224, 1000), ("cifar10:nowhere:train", 32, 10), ("cifar100:nowhere:test", 32, 100)],
)
def test_a_dry_run_needs_no_data(spec, side, classes):
    batches = images.generated(spec, 8, steps=3)
    assert (batches.shape, batches.classes, len(batches)) == ((3, side, side), classes, 3)
    first, second = list(batches), list(batches)
    assert len(first) == 3
    for (x, y), (again, _) in zip(first, second, strict=True):
        assert (x.dtype, x.shape) == (torch.float32, (8, 3, side, side))
        assert (y.dtype, y.shape) == (torch.int64, (8,))
        assert 0 <= int(y.min()) <= int(y.max()) < classes
        assert torch.equal(x, again)
    assert not torch.equal(first[0][0], first[1][0])


def test_a_dry_run_counts_the_classes_that_are_there(folder):
    batches = images.generated(f"imagefolder:{folder}", 50)
    assert batches.classes == 3
    assert set(next(iter(batches))[1].tolist()) == {0, 1, 2}


def test_generated_batches_can_stand_in_for_data_to_judge_by():
    assert [len(y) for _, y in Data.of(images.generated("cifar10:nowhere:test", 8)).batches(5)] == [5, 5, 5, 1]


# ------------------------------------------------------------------------------------------------ folders of images


@needs_torchvision
def test_a_folder_is_read_in_order_and_labelled_by_the_order_of_its_classes(torchvision, folder):
    data = load(f"imagefolder:{folder}")
    assert data.count == 15
    for _ in range(2):
        batches = list(data.batches(6))
        assert [x.shape for x, _ in batches] == [(6, 3, 224, 224), (6, 3, 224, 224), (3, 3, 224, 224)]
        x, y = (np.concatenate(part) for part in zip(*batches, strict=True))
        assert (x.dtype, y.dtype) == (np.float32, np.int64)
        assert y.tolist() == [0] * 5 + [1] * 5 + [2] * 5
        np.testing.assert_allclose(x[:, 0, 100, 100], (100 * y / 255 - 0.485) / 0.229, rtol=1e-5)
        np.testing.assert_allclose(x[:, 2, 0, 0], -0.406 / 0.225, rtol=1e-5)


@needs_torchvision
def test_a_sample_of_a_folder_has_all_classes(torchvision, folder):
    assert [y.tolist() for _, y in load(f"imagefolder:{folder}").sample(6).batches(6)] == [[0, 0, 1, 1, 2, 2]]


@needs_torchvision
def test_images_are_judged_by_their_middle(torchvision, tmp_path):
    across, down = np.meshgrid(np.arange(512) // 2, np.arange(256))
    pixels = np.stack([across, down, np.zeros_like(down)], axis=2).astype(np.uint8)
    for name, width in (("ant", 512), ("bee", 1024)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).resize((width, width // 2)).save(tmp_path / name / "wide.png")
    ((x, _),) = load(f"imagefolder:{tmp_path}").batches(2)
    levels = 255 * (x * np.array([0.229, 0.224, 0.225])[:, None, None] + np.array([0.485, 0.456, 0.406])[:, None, None])
    np.testing.assert_allclose(levels[0], pixels[16:240, 144:368].transpose(2, 0, 1), atol=1e-3)
    np.testing.assert_allclose(levels[1], pixels[16:240, 144:368].transpose(2, 0, 1), atol=3)


@needs_torchvision
def test_images_are_opened_when_their_turn_comes(torchvision, folder, monkeypatch):
    monkeypatch.setattr(images, "_ROWS", 4)
    (folder / "cat" / "4.png").write_text("no image")
    batches = load(f"imagefolder:{folder}").batches(4)
    for _ in range(3):
        next(batches)
    with pytest.raises(UsageError, match=r"cat/4\.png can't be read"):
        next(batches)


@needs_torchvision
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_can_not_be_read_is_named(torchvision, folder, workers):
    path = folder / "bee" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    spec = f"imagefolder:{folder}"
    for batches in (load(spec).batches(5), images.augmented(spec, 15, workers)):
        with pytest.raises(UsageError, match=rf"The image {path} can't be read") as caught:
            list(batches)
        assert str(caught.value).count("\n") == 1


@needs_torchvision
def test_grey_and_palette_images_become_coloured(torchvision, folder):
    Image.new("L", (30, 30), 255).save(folder / "ant" / "0.png")
    Image.new("P", (30, 30)).save(folder / "ant" / "1.png")
    (x, _), *_ = load(f"imagefolder:{folder}").batches(2)
    np.testing.assert_allclose(x[0, :, 0, 0], (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-5)


@needs_torchvision
def test_folders_of_another_layout_are_refused(torchvision, tmp_path):
    def refused(folder, message):
        for function in (load, lambda spec: images.augmented(spec, 4)):
            with pytest.raises(UsageError, match=message) as caught:
                function(f"imagefolder:{folder}")
            assert str(folder) in caught.value.message
            assert str(caught.value).count("\n") == 1

    refused(tmp_path / "nowhere", "No such file")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "Not a directory")
    (tmp_path / "photos").mkdir()
    refused(tmp_path / "photos", "holds no classes")
    picture(tmp_path / "photos" / "ant" / "0.png")
    refused(tmp_path / "photos", "only one class, 'ant'")
    (tmp_path / "photos" / "bee").mkdir()
    (tmp_path / "photos" / "bee" / "notes.txt").touch()
    refused(tmp_path / "photos", "no valid file for the classes bee")
    for part in ("train", "val"):
        picture(tmp_path / "whole" / part / "ant" / "0.png")
    refused(tmp_path / "whole", "the parts of a data set")


@needs_torchvision
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_has_every_image_in_an_order_that_comes_with_torchs_state(torchvision, folder, workers):
    batches = images.augmented(f"imagefolder:{folder}", 5, workers)
    assert (batches.shape, batches.classes, len(batches)) == ((3, 224, 224), 3, 3)
    state = torch.get_rng_state()
    epochs = [list(batches), list(batches)]
    torch.set_rng_state(state)
    epochs += [list(batches), list(batches)]
    for epoch in epochs:
        assert [(x.dtype, x.shape) for x, _ in epoch] == [(torch.float32, (5, 3, 224, 224))] * 3
        labels = torch.cat([y for _, y in epoch])
        assert labels.dtype == torch.int64
        assert sorted(labels.tolist()) == [0] * 5 + [1] * 5 + [2] * 5
        red = torch.cat([x[:, 0, 0, 0] for x, _ in epoch])
        torch.testing.assert_close(red, (100 * labels / 255 - 0.485) / 0.229)  # they went together
    first, second, again, once_more = (torch.cat([y for _, y in epoch]).tolist() for epoch in epochs)
    assert (first, second) == (again, once_more)
    assert first != second


@needs_torchvision
def test_images_are_cut_at_random_and_mirrored(torchvision, tmp_path):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        Image.fromarray(ramp).save(tmp_path / name / "ramp.png")
    torch.manual_seed(0)
    batches = images.augmented(f"imagefolder:{tmp_path}", 2)
    rows = torch.cat([x[:, 0, 0] for _ in range(20) for x, _ in batches])
    rises = rows[:, -1] - rows[:, 0]
    assert 10 < int((rises > 0).sum()) < 30
    assert len(set(rises.abs().tolist())) > 30


@needs_torchvision
@pytest.mark.parametrize("workers", [0, 2])
def test_what_fills_no_batch_is_left_out_or_the_last_one(torchvision, folder, workers):
    def sizes(batch_size, drop_last):
        batches = images.augmented(f"imagefolder:{folder}", batch_size, workers, drop_last)
        epoch = [len(y) for _, y in batches]
        assert len(batches) == len(epoch)
        assert batches.left_out == 15 - sum(epoch)
        return epoch

    assert sizes(4, drop_last=True) == [4, 4, 4]
    assert sizes(4, drop_last=False) == [4, 4, 4, 3]
    assert sizes(7, drop_last=False) == [7, 7]  # one of a single sample is left out
    assert sizes(5, drop_last=False) == sizes(5, drop_last=True) == [5, 5, 5]
    assert sizes(100, drop_last=True) == sizes(100, drop_last=False) == [15]


# ------------------------------------------------------------------------------------------------------------ CIFAR


@needs_torchvision
@pytest.mark.parametrize("name", CIFAR)
def test_the_parts_of_cifar(cifar, name):
    spec = cifar(name)
    kind = images.KINDS[name]
    train, test = load(f"{spec}:train"), load(f"{spec}:test")
    assert (train.count, test.count) == (12, 12)
    ((x, y),) = train.batches(12)
    assert (x.dtype, x.shape, y.dtype) == (np.float32, (12, 3, 32, 32), np.int64)
    assert y.tolist() == [*range(10), 0, kind.classes - 1]
    np.testing.assert_allclose(x[7, :, 5, 5], (7 / 255 - np.array(kind.mean)) / kind.deviation, rtol=1e-4)
    assert next(test.batches(12))[1].tolist() == [3] * 12
    batches = images.augmented(f"{spec}:train", 4)
    assert (batches.shape, batches.classes, len(batches)) == ((3, 32, 32), kind.classes, 3)
    assert images.generated(f"{spec}:train", 4).classes == batches.classes
    assert sorted(label for _, y in batches for label in y.tolist()) == sorted([*range(10), 0, kind.classes - 1])


@needs_torchvision
def test_cifar_is_moved_by_up_to_four_pixels(cifar):
    torch.manual_seed(0)
    ((x, _),) = images.augmented(f"{cifar('cifar10')}:train", 12)
    black = (0 - 0.4914) / 0.2023
    inside = (x[:, 0] - black).abs() > 1e-6
    brightest = x[:, 0].amax((1, 2)) > black + 1e-6  # one image of twelve is black itself
    widths = inside.any(1).sum(1)[brightest]
    assert int(brightest.sum()) == 11
    assert int(widths.min()) >= 28
    assert len(set(widths.tolist())) > 1


@needs_torchvision
def test_cifar_files_that_are_missing_or_altered_are_refused(cifar, tmp_path):
    with pytest.raises(UsageError, match=r"cifar100 are not at .*cifar-100-python") as caught:
        load(f"cifar100:{tmp_path}:test")
    assert "cifar-100-python.tar.gz" in caught.value.remedy
    spec = cifar("cifar10")
    with (tmp_path / "c:data" / "cifar-10-batches-py" / "test_batch").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UsageError, match="or damaged"):
        load(f"{spec}:train")
