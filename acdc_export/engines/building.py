"""A model in a runtime's own form, made by the runtime's own tools in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Target
from ..errors import UsageError
from ..evidence.engine import Arrays
from . import built_here
from .environment import Environment
from .worker import DEFAULT_TIMEOUTS, Timeouts, Worker, Zeros, check_cores


@dataclass(frozen=True)
class Built:
    """A model that a runtime made for itself."""

    path: Path  # what `InstalledTarget.open` takes
    files: tuple[Path, ...]  # all that it consists of, `path` among them
    deployed: tuple[Path, ...]  # those of them that one ships; the others tell how it was made
    zeros: Zeros | None  # of the weights in it, by names of the runtime's; None if it doesn't count them


def check(target: Target, environment: Environment, precision: str, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
    """Have the target's runtime say whether this machine has what it takes to build in `precision`.

    Raises:
        RuntimeUnavailable: something is missing, such as a compiler.
        EngineDied, EngineTimeout: it died or hung over the question.
    """
    with Worker(target, environment, Path("no model"), timeouts) as worker:
        worker.can_build(precision)


def build(
    target: Target,
    environment: Environment,
    model: Path,
    stem: Path,
    *,
    precision: str,
    batch_sizes: Sequence[int],
    cpus: Sequence[int],
    inputs: Arrays,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Built:
    """Have the target's runtime make of `model` its own form in `precision`. If that fails, nothing of it is left.

    Args:
        model: as the target takes it: in FP32, or quantized by the scheme of `precision`.
        stem: the path of the new files up to their suffixes, which the runtime chooses: `STEM.xml` and `STEM.bin`.
        batch_sizes: those that the new form has to take; the first is the one that it calibrates with.
        cpus: the cores that the process is pinned to, with a thread on each.
        inputs: samples to calibrate by, by the names of the model's inputs, in whole batches of the first size; none
            where the precision needs none.

    Raises:
        ModelRefused: the runtime does not take the model or the precision, can't build at all, or did something else
            than `engine.py` has to.
        RuntimeUnavailable: the interpreter does not start, or what it takes can't be imported in it.
        EngineDied, EngineTimeout: it died or hung over the model.
        UsageError: samples that are no whole batches, cores that this process may not use, or files of that stem that
            are there already.
    """
    check_cores(cpus)
    _check_samples(inputs, batch_sizes[0])
    if there := _files(stem):
        raise UsageError(f"{there[0]} is there already.", "Remove it, or name another place for what is built.")
    worker = Worker(target, environment, model, timeouts, in_memory=False)  # all samples at once may be a gigabyte
    try:
        with worker:
            answer = worker.build(stem, precision=precision, batch_sizes=batch_sizes, cpus=cpus, inputs=inputs)
            files = _files(stem)
            deployed = files if answer.deployed is None else tuple(map(Path, answer.deployed))
            for file in (Path(answer.path), *deployed):
                if file not in files:
                    raise worker.refused("build", f"it gives '{file}', which is no file {stem.absolute()}.*")
    except BaseException:
        for file in _files(stem):
            file.unlink()
        raise
    if target.runtime.compiles:
        built_here.remember(Path(answer.path))
    return Built(Path(answer.path), files, deployed, answer.zeros)


def _check_samples(inputs: Arrays, batch_size: int) -> None:
    counts = {len(array) for array in inputs.values()}
    if inputs and (len(counts) != 1 or counts == {0} or any(count % batch_size for count in counts)):
        raise UsageError(
            f"Samples to calibrate by come in whole batches of {batch_size}, as many for each input; these are "
            f"{sorted(counts)}.",
            "Leave out those beyond the last whole batch.",
        )


def _files(stem: Path) -> tuple[Path, ...]:
    stem = stem.absolute()
    return tuple(sorted(file for file in stem.parent.iterdir() if file.name.startswith(f"{stem.name}.")))
