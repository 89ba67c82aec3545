"""What the compiler's tests share: kernels that are compiled once, and libraries of networks."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from acdc_export.native import INSTRUCTION_SETS, Library, toolchain
from acdc_export.native.emit import emit
from acdc_export.native.fuse import fuse
from acdc_export.native.graph import read
from acdc_export.native.layers import Network
from acdc_export.native.layout import Layout, lay_out
from acdc_export.native.plan import Plan, guess
from acdc_export.native.tune import runnable

_KEPT = 24  # objects of kernels: those of several sources


class _Folder(MutableMapping[str, bytes]):
    """Objects of kernels in a folder, which the processes of a test run share, and the runs after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, key: str) -> bytes:
        try:
            return (self.folder / key).read_bytes()
        except FileNotFoundError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, content: bytes) -> None:
        new = self.folder / f"{key}.{id(self)}.new"
        new.write_bytes(content)
        new.replace(self.folder / key)

    def __delitem__(self, key: str) -> None:
        (self.folder / key).unlink()

    def __iter__(self) -> Iterator[str]:
        return (path.name for path in self.folder.iterdir() if not path.suffix)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@pytest.fixture(scope="session", autouse=True)
def _kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("native-kernels") if cache else tmp_path_factory.mktemp("native-kernels")
    version = subprocess.run([*toolchain.compiler(), "--version"], capture_output=True, check=True).stdout
    folder = folder / hashlib.sha256(version).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    objects = sorted((path for path in folder.iterdir() if not path.suffix), key=lambda path: path.stat().st_mtime)
    for path in objects[:-_KEPT]:
        path.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolchain, "compiled_kernels", _Folder(folder))
        yield


HERE = runnable()
"""Instruction sets of this processor, best first."""

Choose = Callable[[Layout, Plan], Plan]


@dataclass(frozen=True)
class Built:
    """A network, and the library that was compiled of it."""

    network: Network
    layout: Layout
    plan: Plan
    path: Path

    @contextmanager
    def library(self, instruction_set: str = HERE[0], threads: int = 1) -> Iterator[Library]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MODEL_INSTRUCTION_SET", instruction_set)
            library = Library(self.path, threads)
        with library:
            assert library.instruction_set == instruction_set
            yield library


def build(
    model: onnx.ModelProto, folder: Path, instruction_sets: Sequence[str] = HERE[:1], choose: Choose | None = None,
    threads: int = 2, name: str = "net",
) -> Built:  # fmt: skip
    """Compile a network without measuring; `choose` may change the plan."""
    onnx.save(model, folder / f"{name}.onnx")
    network = fuse(read(folder / f"{name}.onnx"))
    layout = lay_out(network)
    plan = guess(layout, instruction_sets, threads)
    if choose is not None:
        plan = choose(layout, plan)
    source = emit(layout, plan, name, name, "0" * 64)
    return Built(network, layout, plan, toolchain.build(source, folder, instruction_sets))


__all__ = ["HERE", "INSTRUCTION_SETS", "Built", "build"]
