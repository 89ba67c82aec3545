"""What a user asks for, before anything is settled: how a pair is deployed and judged, and where it is to go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import engines, machine
from .bundle import Bundle
from .config import Judging, Target
from .data import Data
from .data import load as load_data
from .errors import UsageError
from .evidence.gates import combine
from .machine import Machine
from .progress import SILENT, Progress
from .records.comparison import Comparison

Ask = Callable[[str], bool]
Samples = str | Data | Iterable[Any] | None


@dataclass(frozen=True)
class Options:
    """How a pair is deployed and judged: what `workflow.export` takes, and describes."""

    judging: Judging | None = None
    data: Data | None = None
    calibrate: Data | None = None
    keep_fp32: tuple[str, ...] = ()
    out: Path = Path("bundles")
    batch_sizes: tuple[int, ...] = ()
    gates: tuple[str, ...] = ()
    budget: float | None = None
    threads: tuple[int, ...] = ()
    require_deployable: bool = False
    accept_licenses: frozenset[str] = frozenset()
    ask: Ask | None = None
    progress: Progress = field(default=SILENT)

    def machine(self) -> Machine:
        """This machine, with as many cores as the most threads that are asked for. Raises `UsageError`."""
        return [machine.describe(count) for count in sorted(self.threads)][-1] if self.threads else machine.describe()

    def install(self, target: Target) -> engines.InstalledTarget:
        """A target, ready to run. Raises `RuntimeUnavailable`."""
        found = engines.ensure(target, accept_licenses=self.accept_licenses, progress=self.progress, ask=self.ask)
        return engines.InstalledTarget(target, found)

    def place(self, pair: str, target: Target, precision: str) -> Path:
        """Where the bundle goes."""
        return self.out / f"{pair}-{target.at(precision)}"

    def comparison_place(self, pair: str) -> Path:
        """Where the comparison of several deployments goes."""
        return self.out / f"{pair}-comparison"


@dataclass(frozen=True)
class DeploymentRequest:
    """Where a pair is to go. Of a `survey` one that passes is enough; what it can't have is `missing`, with reasons."""

    deployments: tuple[tuple[Target, str], ...]  # targets, at precisions
    missing: Mapping[str, str] = field(default_factory=dict)
    survey: bool = False

    @property
    def several(self) -> bool:
        """Whether there is something to compare."""
        return len(self.deployments) + len(self.missing) > 1


@dataclass(frozen=True)
class Outcome:
    """What became of a pair: the bundles that were written, and how they compare where several were asked for."""

    bundles: tuple[Bundle, ...]
    comparison: Comparison | None = None

    @property
    def exit_code(self) -> int:
        """Of the comparison, or of the only bundle."""
        return self.comparison.exit_code if self.comparison else combine(one.report.exit_code for one in self.bundles)


def as_data(given: str | Data | Iterable[Any]) -> Data:
    """Samples in whatever form a caller has them."""
    if isinstance(given, str):
        return load_data(given)
    return given if isinstance(given, Data) else Data.of(given)


def check_budget(budget: float | None) -> float | None:
    """A budget that can be spent. Raises `UsageError`."""
    if budget is not None and not 0 < budget < float("inf"):
        raise UsageError(f"--budget {budget:g}: that is no time to measure in.", "Give seconds, such as 60.")
    return budget
