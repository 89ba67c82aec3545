"""Images from files, by way of torchvision. They are read as they are needed, so that they may be many.

imagefolder:PATH         PATH/CLASS/IMAGE.jpg, cut to 224x224 as usual for ImageNet; the label is the class's place
                         among the folders in Python's order of strings, hidden ones left out
cifar10:PATH:train       or :test; PATH holds cifar-10-batches-py, the Python version
cifar100:PATH:train      or :test; PATH holds cifar-100-python

Networks are judged by the images of `read`, and trained on those of `augmented`. Both have three channels, each of
about mean 0 and deviation 1 (of CIFAR-10 about 1.2).
"""

from __future__ import annotations

import os
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
from ..files import expanded
from .pixels import open_rgb

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """The properties that all data of a kind share."""

    form: str
    side: int  # pixels
    classes: int
    mean: tuple[float, float, float]  # of the channels, as shares of full intensity
    deviation: tuple[float, float, float]


KINDS = {
    # The classes of a folder are counted; ImageNet's 1,000 stand in where there is no folder.
    "imagefolder": Kind("imagefolder:PATH", 224, 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # CIFAR as in the AC/DC authors' code. CIFAR-10's deviations there are means over images of each image's own.
    "cifar10": Kind("cifar10:PATH:train or :test", 32, 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Kind("cifar100:PATH:train or :test", 32, 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}

_LAYOUT = "Give a folder that holds one folder of images a class: PATH/CLASS/IMAGE.jpg."
_PARTS = {"train", "val", "valid", "validation", "test"}
_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}  # as torchvision reads
_ROWS = 64  # decoded at a time

Arrays = Iterator[tuple[NDArray[Any], NDArray[Any]]]  # float32 (rows, 3, side, side) and int64 (rows,)


@dataclass(frozen=True)
class Source:
    """Images to be judged by."""

    count: int
    classes: tuple[str, ...]  # in the order of the labels
    all: Callable[[], Arrays] = field(repr=False)  # in order
    pick: Callable[[Sequence[int]], Arrays] = field(repr=False)  # samples by their indices


@dataclass(frozen=True)
class _Folder:
    """The images of a folder in the order of their classes, then their paths: pairs of a tensor and a class index."""

    classes: list[str]
    files: list[tuple[Path, int]]
    transform: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.files[index]
        return self.transform(open_rgb(path)), label


@dataclass(frozen=True)
class Batches:
    """Batches to train on. Each iteration is an epoch of `len` pairs (images, labels).

    Images are float32 (rows, 3, side, side), labels int64 (rows,), tensors on the CPU.
    """

    spec: str
    shape: tuple[int, int, int]  # of an image
    classes: int
    names: tuple[str, ...]  # of the classes, in the order of the labels; empty where they are not known
    steps: int
    _epoch: Callable[[], Iterator[tuple[Tensor, Tensor]]] = field(repr=False)
    left_out: int = 0  # samples in an epoch, others in each

    @property
    def listed(self) -> bool:
        """Whether labels follow from the folders that are there, and not from the files themselves."""
        return self.spec.startswith("imagefolder:") and bool(self.names)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._epoch()


def read(spec: str) -> Source:
    """Return the samples of `spec`, to be read as they are needed.

    Images of a folder are scaled until the shorter side has 256 pixels, and cut to the 224x224 in the middle.
    Batches are float32 (rows, 3, side, side) and int64 (rows,).

    Raises:
        UsageError: the spec has another form, or the folder or files are not as they should be; while reading, an image
            can't be read.
        RuntimeUnavailable: torchvision is missing.
    """
    samples = _samples(spec, augment=False)

    def pick(indices: Sequence[int]) -> Arrays:
        with ThreadPoolExecutor() as pool:  # decoding takes the time, and runs without the interpreter lock
            for first in range(0, len(indices), _ROWS):
                rows = pool.map(samples.__getitem__, indices[first : first + _ROWS])
                images, labels = zip(*rows, strict=True)
                yield np.stack([image.numpy() for image in images]), np.array(labels)

    return Source(len(samples), tuple(samples.classes), lambda: pick(range(len(samples))), pick)


def steps_of(samples: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches in an epoch, which is at least 1.

    A smaller last batch is one of them unless `drop_last`. If it has a single sample it is left out in any case: batch
    norms can't learn from one.
    """
    whole, rest = divmod(samples, batch_size)
    return max(1, whole if drop_last or rest < 2 else whole + 1)


def augmented(spec: str, batch_size: int, workers: int = 0, drop_last: bool = True) -> Batches:
    """Return batches in random order, of images cut at random, half of them mirrored; see `steps_of` for their number.

    Folders give cuts of 8 to 100 % of an image, scaled to 224x224. CIFAR gives
    cuts of 32x32 of the image with a black border of 4 pixels. All randomness comes from torch's global numbers: with
    the same state and as many workers, an epoch is the same again.

    Args:
        workers: the number of processes that read ahead; with 0, the caller's process reads.

    Raises:
        UsageError, RuntimeUnavailable: as `read`, here or in an epoch.
    """
    samples = _samples(spec, augment=True)
    import torch
    from torch.utils.data import DataLoader

    batch_size = min(batch_size, len(samples))
    steps = steps_of(len(samples), batch_size, drop_last)
    loader: DataLoader[Any] = DataLoader(
        range(len(samples)),  # type: ignore[arg-type]  # it has a length and items, and needs no more
        batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=partial(_batch, samples),
        pin_memory=torch.cuda.is_available(),
        drop_last=steps * batch_size <= len(samples),
    )

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            if isinstance(batch[0], str):  # a message and a remedy, see `_batch`
                raise UsageError(*batch)
            yield batch

    side = KINDS[spec.partition(":")[0]].side
    names = tuple(samples.classes)
    left_out = max(0, len(samples) - steps * batch_size)
    return Batches(spec, (3, side, side), len(names), names, steps, epoch, left_out)


def generated(spec: str, batch_size: int, steps: int = 2) -> Batches:
    """Return noise in place of the batches of `augmented`, for a dry run. No file has to exist.

    Each epoch has the same few batches.

    Raises:
        UsageError: the spec has another form.
        RuntimeUnavailable: torch is missing.
    """
    name, path, _ = parse(spec)
    with extra("train"):
        import torch

    kind = KINDS[name]
    names = tuple(_classes(spec, path)) if name == "imagefolder" and path.is_dir() else ()
    classes = len(names) or kind.classes

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        random = torch.Generator().manual_seed(0)
        for _ in range(steps):
            images = torch.randn(batch_size, 3, kind.side, kind.side, generator=random)
            yield images, torch.randint(classes, (batch_size,), generator=random)

    return Batches(spec, (3, kind.side, kind.side), classes, names, steps, epoch)


def _batch(samples: Any, rows: list[int]) -> tuple[Tensor, Tensor] | tuple[str, str]:
    """Return the samples at `rows`, or message and remedy of a `UsageError`.

    Torch lets no exception through from a worker process as it was.
    """
    import torch

    try:
        images, labels = zip(*(samples[row] for row in rows), strict=True)
    except UsageError as error:
        return error.message, error.remedy
    return torch.stack(images), torch.tensor(labels)


def _samples(spec: str, augment: bool) -> Any:
    """Return the data set of `spec`: pairs of a tensor (3, side, side) and a class index; it has `classes`, too."""
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
        classes = _classes(spec, path)
        return _Folder(classes, _files(spec, path, classes), transform)
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        return source(path, train=part == "train", transform=transform, download=False)
    except RuntimeError as error:  # it compares the files with their hashes before it opens them
        raise UsageError(
            f"{spec}: the files of {name} are not at {path / source.base_folder}, or damaged.",
            f"Unpack {source.url} in {path}.",
        ) from error


def parse(spec: str) -> tuple[str, Path, str]:
    """Return the name of the kind, the path, and the part or "". Raises `UsageError` for another form."""
    name, _, rest = spec.partition(":")
    path, _, part = (rest, "", "") if name == "imagefolder" else rest.rpartition(":")
    if not path or (name != "imagefolder" and part not in ("train", "test")):
        raise UsageError(f"'{spec}' is not of the form {KINDS[name].form}.", "PATH is a folder on this machine.")
    return name, expanded(Path(path), "Write the path out, without ~."), part


def _classes(spec: str, path: Path) -> list[str]:
    """List the classes of an image folder; a label is the index of one. Raises `UsageError` for fewer than two."""
    try:
        names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not _hidden(entry.name))
    except OSError as error:
        raise UsageError(f"{spec}: {path} can't be read: {error.strerror}.", _LAYOUT) from error
    if names and _PARTS.issuperset(names):
        raise UsageError(
            f"{spec}: {path} holds the parts of a data set ({', '.join(names)}), not classes.",
            f"Name one of them: imagefolder:{path / names[0]}",
        )
    if len(names) < 2:
        content = f"only one class, '{names[0]}'" if names else "no classes"
        raise UsageError(f"{spec}: {path} holds {content}.", _LAYOUT)
    return names


def _hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's own: file managers, notebooks and archives leave such behind."""
    return name.startswith(".") or name == "__MACOSX"


def _files(spec: str, path: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """List the images of all classes with their labels. Raises `UsageError` for a class without any."""
    files, empty = list[tuple[Path, int]](), []
    for label, name in enumerate(classes):
        images = _images(path / name)
        files += [(image, label) for image in images]
        if not images:
            empty.append(name)
    if empty:
        raise UsageError(
            f"{spec}: there is no valid file for the classes {', '.join(empty[:5])}"
            f"{f' and {len(empty) - 5} others' if len(empty) > 5 else ''}.",
            f"Every folder is a class: put images in ({', '.join(sorted(_SUFFIXES))}), or remove what is no class.",
        )
    return files


def _images(folder: Path) -> list[Path]:
    """All images in a folder and those below it."""
    images = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _hidden(name)]
        images += [Path(place, name) for name in names if not _hidden(name) and Path(name).suffix.lower() in _SUFFIXES]
    return sorted(images, key=lambda image: (str(image.parent), image.name))
