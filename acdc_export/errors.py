"""Everything this package raises on purpose, in one tree.

    AcdcExportError               exit
    ├── UsageError                  2   a wrong option, path, name or input array
    │   └── ConfigError             2   a pipeline or target file; holds every problem found in it
    ├── PairError                   2   a pair that is missing, half-written, altered or unusable
    ├── BundleError                 2   a bundle that can't be read
    ├── BaselineError               2   stored ratios that are missing, or of something else
    │   └── UnlikeMachine           3   stored ratios, but none of a machine like this one
    ├── GraphError                  2   an ONNX graph that can't be lowered for the target
    ├── CalibrationError            2   samples that give no ranges of activations
    ├── CheckpointError             2   a training checkpoint that can't be read, or is of another run
    ├── OutputError                 2   a folder that can't be written or is foreign, or a full disk
    ├── TrainingError               1   a run that went wrong (a loss that is not finite)
    ├── RuntimeUnavailable          3   a target that can't run here: no interpreter, licence or network
    └── EngineError                 3   a runtime that refused the model, died or hung
        ├── ModelRefused
        ├── EngineDied
        └── EngineTimeout

Each error is two lines: what is wrong and where, then what to do about it. The command ends with
`exit_code`; docs/design.md lists the codes. Any other exception that reaches the command line is a
bug of ours, and ends with 70.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from .printable import printable_lines

__all__ = [
    "AcdcExportError",
    "BaselineError",
    "BundleError",
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "EngineDied",
    "EngineError",
    "EngineTimeout",
    "GraphError",
    "ModelRefused",
    "OutputError",
    "PairError",
    "RuntimeUnavailable",
    "TrainingError",
    "UnlikeMachine",
    "UsageError",
]


class AcdcExportError(Exception):
    """An error of two lines: `message` says what is wrong and where, `remedy` what to do about it.

    Both quote files and runtimes, so both are cleaned of what a terminal would obey.
    """

    exit_code = 70

    def __init__(self, message: str, remedy: str) -> None:
        self.message = printable_lines(message)
        self.remedy = printable_lines(remedy)
        super().__init__(f"{self.message}\n{self.remedy}")


class UsageError(AcdcExportError):
    """A wrong option, path, name or input array."""

    exit_code = 2


class ConfigError(UsageError):
    """A pipeline or target file with mistakes; `problems` holds all of them, one line each."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        listing = "".join("\n  " + problem.replace("\n", "\n  ") for problem in problems)
        super().__init__(
            f"{where}: {count}{listing}",
            "Correct the file; `acdc-export targets show cpu` and `pipelines show digits` print commented examples.",
        )
        self.problems = tuple(problems)


class PairError(AcdcExportError):
    """A pair that is missing, half-written, altered or unusable."""

    exit_code = 2


class BundleError(AcdcExportError):
    """A bundle that can't be read."""

    exit_code = 2


class BaselineError(AcdcExportError):
    """Stored ratios that are missing, damaged, or of another schema, model or target."""

    exit_code = 2


class UnlikeMachine(BaselineError):
    """Stored ratios, but none of a machine like this one: there is nothing to compare with."""

    exit_code = 3


class GraphError(AcdcExportError):
    """An ONNX graph that can't be lowered for the target."""

    exit_code = 2


class CalibrationError(AcdcExportError):
    """Samples that give no ranges of activations: there are none, some are not finite, or they make no difference."""

    exit_code = 2


class CheckpointError(AcdcExportError):
    """A training checkpoint that can't be read, or is of another run."""

    exit_code = 2


class OutputError(AcdcExportError):
    """A folder that can't be written or holds something foreign, or a full disk."""

    exit_code = 2


class TrainingError(AcdcExportError):
    """A training run that went wrong."""

    exit_code = 1


class RuntimeUnavailable(AcdcExportError):
    """A target that can't run on this machine: no interpreter, licence, or network to install it."""

    exit_code = 3


class EngineError(AcdcExportError):
    """A runtime that could not do its work."""

    exit_code = 3


class ModelRefused(EngineError):
    """The runtime was alive, and answered with an error."""


class EngineDied(EngineError):
    """The runtime's process ended (a native crash, most often)."""


class EngineTimeout(EngineError):
    """The runtime did not answer in time, and was ended."""


def nearest(word: str, known: Sequence[str]) -> str:
    """Return ` (did you mean 'x'?)` with the known word nearest to `word`, or ""."""
    match = get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""
