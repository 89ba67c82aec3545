"""Images from files, by way of torchvision; read as they are needed, so that they may be many.

imagefolder:PATH         PATH/CLASS/IMAGE.jpg, cut to 224x224 as usual for ImageNet
cifar10:PATH:train       or :test; PATH holds cifar-10-batches-py, the Python version
cifar100:PATH:train      or :test; PATH holds cifar-100-python

Networks are judged by what `read` gives, and trained on what `augmented` gives. Either has three channels, each of
about mean 0 and deviation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..extras import extra
from .importing import reason

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """What is common to all data of a kind."""

    form: str
    side: int  # pixels
    classes: int
    mean: tuple[float, float, float]  # of the channels, as shares of full intensity
    deviation: tuple[float, float, float]


KINDS = {
    # How many classes a folder has is counted; ImageNet's 1,000 are for where there is none.
    "imagefolder": Kind("imagefolder:PATH", 224, 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": Kind("cifar10:PATH:train or :test", 32, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Kind("cifar100:PATH:train or :test", 32, 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}

_LAYOUT = "Give a folder that holds one folder of images a class: PATH/CLASS/IMAGE.jpg."
_PARTS = {"train", "val", "valid", "validation", "test"}
_ROWS = 64  # decoded at a time


@dataclass(frozen=True)
class Batches:
    """Batches to train on: each iteration is an epoch of `len` pairs (images, labels), tensors on the CPU, float32
    (rows, 3, side, side) and int64 (rows,)."""

    spec: str
    shape: tuple[int, int, int]  # of an image
    classes: int
    steps: int
    _epoch: Callable[[], Iterator[tuple[Tensor, Tensor]]] = field(repr=False)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._epoch()


def read(
    spec: str,
) -> tuple[
    int,
    Callable[[], Iterator[tuple[NDArray[Any], NDArray[Any]]]],
    Callable[[Sequence[int]], Iterator[tuple[NDArray[Any], NDArray[Any]]]],
]:
    """How many samples there are, and functions that start reading: all in order, as they are to be judged, and some,
    by their places in that order.

    Images of a folder are scaled until the shorter side has 256 pixels, and cut to the 224x224 in the middle.

    Raises:
        UsageError: a spec of another form, a folder or files that are not as they should be; while reading, an image
            that can't be read.
        RuntimeUnavailable: torchvision is missing.
    """
    samples = _samples(spec, augment=False)

    def some(places: Sequence[int]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        with ThreadPoolExecutor() as pool:  # decoding, which takes the time, runs beside Python
            for first in range(0, len(places), _ROWS):
                rows = pool.map(samples.__getitem__, places[first : first + _ROWS])
                images, labels = zip(*rows, strict=True)
                yield np.stack([image.numpy() for image in images]), np.array(labels)

    return len(samples), lambda: some(range(len(samples))), some


def augmented(spec: str, batch_size: int, workers: int = 0) -> Batches:
    """Batches in random order, at random cuts and half of them mirrored; what fills no batch is left out.

    Folders give cuts of 8 to 100 % of an image, scaled to 224x224; CIFAR cuts of 32x32 from 4 pixels of black around
    it. All randomness comes from torch's global numbers: with the same state and as many workers, an epoch is the
    same again.

    Args:
        workers: processes that read ahead; with 0, the caller's does.

    Raises:
        UsageError, RuntimeUnavailable: as `read`, here or in an epoch.
    """
    samples = _samples(spec, augment=True)
    import torch
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        range(len(samples)),  # type: ignore[arg-type]  # it has a length and items, and needs no more
        min(batch_size, len(samples)),
        shuffle=True,
        num_workers=workers,
        collate_fn=partial(_batch, samples),
        pin_memory=torch.cuda.is_available(),
        drop_last=True,  # a last batch of a few samples would upset the batch norms
    )

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for first, second in loader:
            if isinstance(first, str):
                raise UsageError(first, second)
            yield first, second

    side = KINDS[spec.partition(":")[0]].side
    return Batches(spec, (3, side, side), len(samples.classes), len(loader), epoch)


def generated(spec: str, batch_size: int, steps: int = 2) -> Batches:
    """Noise in place of what `augmented` gives, for a dry run: nothing has to be where `spec` says. Each epoch has
    the same few batches.

    Raises:
        UsageError: a spec of another form.
        RuntimeUnavailable: torch is missing.
    """
    name, path, _ = parse(spec)
    with extra("train"):
        import torch

    kind = KINDS[name]
    classes = len(_classes(spec, path)) if name == "imagefolder" and path.is_dir() else kind.classes

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        random = torch.Generator().manual_seed(0)
        for _ in range(steps):
            images = torch.randn(batch_size, 3, kind.side, kind.side, generator=random)
            yield images, torch.randint(classes, (batch_size,), generator=random)

    return Batches(spec, (3, kind.side, kind.side), classes, steps, epoch)


def _batch(samples: Any, rows: list[int]) -> tuple[Tensor, Tensor] | tuple[str, str]:
    """The samples at `rows`, or what a `UsageError` says: of a worker process, torch lets through only its own."""
    import torch

    try:
        images, labels = zip(*(samples[row] for row in rows), strict=True)
    except UsageError as error:
        return error.message, error.remedy
    return torch.stack(images), torch.tensor(labels)


def _samples(spec: str, augment: bool) -> Any:
    """torchvision's data set of `spec`: pairs of a tensor (3, side, side) and a class index."""
    name, path, part = parse(spec)
    with extra("vision"):
        from torchvision import datasets, transforms

    kind = KINDS[name]
    if name == "imagefolder":
        cut = [transforms.RandomResizedCrop(224)] if augment else [transforms.Resize(256), transforms.CenterCrop(224)]
    else:
        cut = [transforms.RandomCrop(32, padding=4)] if augment else []
    mirror = [transforms.RandomHorizontalFlip()] if augment else []
    scale = [transforms.ToTensor(), transforms.Normalize(kind.mean, kind.deviation)]
    transform = transforms.Compose([*cut, *mirror, *scale])
    if name == "imagefolder":
        _classes(spec, path)
        try:
            return datasets.ImageFolder(path, transform, loader=_opened)
        except FileNotFoundError as error:  # it names the classes without an image
            raise UsageError(f"{spec}: {reason(error)}.", _LAYOUT) from error
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        return source(path, train=part == "train", transform=transform, download=False)
    except RuntimeError as error:  # it compares the files with their hashes before it opens them
        raise UsageError(
            f"{spec}: the files of {name} are not at {path / source.base_folder}, or damaged.",
            f"Unpack {source.url} in {path}.",
        ) from error


def parse(spec: str) -> tuple[str, Path, str]:
    """The name of the kind, the path, and the part where there is one. Raises `UsageError` for another form."""
    name, _, rest = spec.partition(":")
    path, _, part = (rest, "", "") if name == "imagefolder" else rest.rpartition(":")
    if not path or (name != "imagefolder" and part not in ("train", "test")):
        raise UsageError(f"'{spec}' is not of the form {KINDS[name].form}.", "PATH is a folder on this machine.")
    return name, Path(path).expanduser(), part


def _classes(spec: str, path: Path) -> list[str]:
    """The classes of an image folder, two at least; a label is the index of one."""
    try:
        names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    except OSError as error:
        raise UsageError(f"{spec}: {path} can't be read: {error.strerror}.", _LAYOUT) from error
    if names and _PARTS.issuperset(names):
        raise UsageError(
            f"{spec}: {path} holds the parts of a data set ({', '.join(names)}), not classes.",
            f"Name one of them: imagefolder:{path / names[0]}",
        )
    if len(names) < 2:
        found = f"only one class, '{names[0]}'" if names else "no classes"
        raise UsageError(f"{spec}: {path} holds {found}.", _LAYOUT)
    return names


def _opened(path: str) -> Image:
    """The image at `path`, in red, green and blue."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # the decoders each have their own
        raise UsageError(
            f"The image {path} can't be read: {reason(error)}.", "Repair it, or take it out of the folder."
        ) from error
