"""What others met when they judged networks by their data: the symptom stands at the top of each test."""

import numpy as np
import pytest
import torch
from torch import nn

from acdc_export import check, export
from acdc_export.data import Data, load
from acdc_export.data.pixels import open_rgb
from acdc_export.errors import UsageError
from acdc_export.pair import Pair, named
from acdc_export.training import ACDC, Schedule, Unstructured

SCHEDULE = Schedule.alternating(warmup=1, sparse=1, dense=1, cycles=0, last_sparse=1, last_dense=1, final_sparse=1)
ANIMALS = ("ant", "bee", "cat", "dog")
RUNTIME = {"gates": ["parity <= 1e-3"], "batch_sizes": [4], "budget": 1.0}


def images(count, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def finished(accuracy=1.0):
    """A finished run, and samples that its twin gets all right."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    acdc = ACDC(model, optimizer, schedule=SCHEDULE, pattern=Unstructured(0.5))
    for _ in acdc.epochs():
        optimizer.zero_grad()
        model(images(16)).square().mean().backward()
        optimizer.step()
        acdc.record(accuracy=accuracy)
    x = images(200, seed=1)
    with torch.no_grad():
        labels = model(x).argmax(1)
    return acdc, x, labels


@pytest.mark.runtime
@pytest.mark.parametrize("form", ["uint8", "0 to 1", "0 to 255"])
def test_pixels_without_normalisation_are_not_judged(form, tmp_path):
    """ONNX Runtime, TensorRT: accuracy collapses after the export; the inputs were not normalised."""
    acdc, x, labels = finished()
    pair = acdc.save_pair(tmp_path / "pair", images(32))
    pixels = ((x - x.min()) / (x.max() - x.min())).numpy()
    odd = {"uint8": (pixels * 255).astype(np.uint8), "0 to 1": pixels, "0 to 255": pixels * 255}[form]
    options = {**RUNTIME, "out": tmp_path / "bundles"}
    given = Data.of([(odd, labels)])
    with pytest.raises(UsageError, match="given data has input from 0 to"):
        export(pair, "onnxruntime", data=given, **options)
    bundle = export(pair, "onnxruntime", data=Data.of([(x, labels)]), **options)
    assert bundle.report.accuracy.dense.value == 100.0
    np.savez(tmp_path / "odd.npz", x=odd, y=labels.numpy())
    with pytest.raises(UsageError, match=r"odd.npz has input from 0 to"):
        check(bundle.path, against=bundle.path, data=str(tmp_path / "odd.npz"), out=tmp_path / "c")


@pytest.mark.runtime
def test_an_accuracy_far_from_training_is_said(tmp_path):
    """timm: a validation script reports a few percent where the model card says 80."""
    acdc, x, labels = finished(accuracy=0.99)
    pair = acdc.save_pair(tmp_path / "pair", images(32))
    shifted = Data.of([(x, (labels + 1) % 4)])
    bundle = export(pair, "onnxruntime", data=shifted, out=tmp_path / "bundles", **RUNTIME)
    text = " ".join(bundle.report.notes)
    assert "far from the 99.0 % that its training recorded" in text
    assert "Near chance: the sparse half" in text


def test_a_folder_that_lacks_a_class_is_refused(tmp_path):
    """torchvision: ImageFolder numbers the folders that are there; one that is missing shifts all labels after it."""
    acdc, x, labels = finished()
    pair = acdc.save_pair(tmp_path / "pair", images(32), classes=ANIMALS)
    assert Pair.load(pair.path).record.classes == ANIMALS
    np.savez(tmp_path / "three.npz", x=x, y=labels % 3, classes=["ant", "cat", "dog"])
    with pytest.raises(UsageError, match=r"three.npz has other classes than the pair .*: it lacks bee"):
        next(named(load(str(tmp_path / "three.npz")), pair.expected, 8))
    np.savez(tmp_path / "four.npz", x=x, y=labels, classes=ANIMALS)
    assert sum(len(y) for _, y in named(load(str(tmp_path / "four.npz")), pair.expected, 8)) == 200


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (ANIMALS[:3], "3 names, and the output 'logits' tells 4"),
        (("ant", "ant", "cat", "dog"), "'ant' is there twice"),
        (("ant", "", "cat", "dog"), "one is empty"),
        ("abcd", "a single string"),
    ],
)
def test_names_of_classes_that_do_not_fit_are_refused(classes, message, tmp_path):
    """Hugging Face: id2label has other entries than the head has outputs."""
    acdc, _, _ = finished()
    with pytest.raises(UsageError, match=message):
        acdc.save_pair(tmp_path / "pair", images(8), classes=classes)
    assert not (tmp_path / "pair").exists()


def test_grey_images_of_16_bits_are_not_white(tmp_path):
    """Pillow, torchvision: 16-bit PNGs become all white when they are converted to RGB."""
    Image = pytest.importorskip("PIL.Image")
    Image.fromarray(np.array([[0, 1000, 40_000, 65_535]], np.uint16)).save(tmp_path / "x.png")
    assert np.asarray(open_rgb(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 4, 156, 255]


@pytest.mark.parametrize(
    "batch",
    [
        lambda x, y: (x.bfloat16(), y),
        lambda x, y: (x.to_sparse(), y),
        lambda x, y: (x.requires_grad_(), y),
        lambda x, y: {"pixel_values": x, "labels": y},
        lambda x, y: (list(x), y[:, None]),
    ],
)
def test_batches_of_any_loader_are_read(batch, tmp_path):
    """PyTorch, Hugging Face: "Got unsupported ScalarType BFloat16", "call numpy() on Tensor that requires grad"."""
    acdc, x, labels = finished()
    pair = acdc.save_pair(tmp_path / "pair", images(32))
    inputs, y = next(named(Data.of([batch(x, labels)]), pair.expected, 200))
    np.testing.assert_allclose(inputs["input"], x.detach().numpy(), atol=0.02)
    np.testing.assert_array_equal(y, labels)


def test_ragged_batches_are_refused(tmp_path):
    """NumPy: "setting an array element with a sequence. The requested array has an inhomogeneous shape"."""
    with pytest.raises(UsageError, match="different lengths or shapes") as caught:
        next(Data.of([([torch.zeros(3), torch.zeros(4)], [0, 1])]).batches(2))
    assert "Pad or cut" in caught.value.remedy
