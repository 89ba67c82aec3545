"""What a user may ask for, written once: Python functions and commands follow from these classes.

Importing this module loads nothing heavy, so that `--help` answers at once. That is also why the classes do without
`__eq__`: each method that dataclasses write takes time, and nobody compares options.
"""

# Annotations are objects here: see `keywords`. So no `from __future__ import annotations`.
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias, cast

from .errors import UsageError
from .keywords import Converted, Many, Option
from .progress import SILENT, Progress

if TYPE_CHECKING:
    from .bundle import Bundle
    from .config import Judging, Target
    from .data import Data
    from .engines import Environment, InstalledTarget
    from .machine import Machine
    from .records.check import Kind
    from .records.comparison import Comparison

ALL = "all"
"""Among targets or precisions: every one that can be had."""

Ask: TypeAlias = Callable[[str], bool]
Samples: TypeAlias = "str | Data | Iterable[Any] | None"


def as_data(given: Samples) -> "Data | None":
    """Samples in whatever form a caller has them. Raises `UsageError`, `RuntimeUnavailable`: they can't be had."""
    if given is None:
        return None
    from .data import Data, load

    if isinstance(given, str):
        return load(given)
    return given if isinstance(given, Data) else Data.of(given)


def as_path(given: str | Path | None) -> Path | None:
    """A path in whatever form a caller has it."""
    return None if given is None else Path(given)


def check_budget(budget: float | None) -> None:
    """Ensure that a budget can be spent. Raises `UsageError`."""
    if budget is not None and not 0 < budget < float("inf"):
        raise UsageError(f"--budget {budget:g}: that is no time to measure in.", "Give seconds, such as 60.")


@dataclass(frozen=True, eq=False)
class TrainOptions:
    """How a pair is trained, beside what its pipeline says."""

    out: Annotated[
        Converted[str | Path, Path], Option("Parent folder of the pair.", flag="--runs", metavar="FOLDER")
    ] = Converted(Path, "runs")
    _: KW_ONLY
    anew: Annotated[bool, Option("Begin anew where an earlier run was interrupted.")] = False
    progress: Annotated[Progress, Option("Where to say how far the work is.", cli=False)] = SILENT


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineOptions:
    """What every verb that runs engines needs to know."""

    accept_licenses: Annotated[
        Many[str],
        Option(
            "A runtime whose license you accept ('deepsparse'). The answer is remembered.",
            flag="--accept-license",
            metavar="RUNTIME",
        ),
    ] = Many()
    ask: Annotated[
        Ask | None,
        Option(
            "Shows a license's notice and returns whether it is accepted. None where nobody can be asked.", cli=False
        ),
    ] = None
    progress: Annotated[Progress, Option("Where to say how far the work is.", cli=False)] = SILENT

    def ensure(self, target: "Target", *, locked: dict[str, str] | None = None) -> "Environment":
        """The environment of a target, made if it is not there. Raises as `engines.ensure`."""
        from . import engines

        accepted = frozenset(self.accept_licenses)
        return engines.ensure(target, accept_licenses=accepted, progress=self.progress, ask=self.ask, locked=locked)

    def install(self, target: "Target") -> "InstalledTarget":
        """A target, ready to run. Raises `RuntimeUnavailable`."""
        from . import engines

        return engines.InstalledTarget(target, self.ensure(target))


@dataclass(frozen=True, kw_only=True, eq=False)
class DeployOptions(EngineOptions):
    """How a pair is deployed and judged, wherever it goes."""

    judging: Annotated[
        "Judging | None",
        Option("Batch sizes and gates. By default those of the pair's pipeline, else those of the target.", cli=False),
    ] = None
    data: Annotated[
        Converted[Samples, "Data | None"],
        Option(
            "What to judge accuracy by: FILE.npz, NAME:SPLIT or package.module:factory. By default what the pair's "
            "pipeline names.",
            metavar="SOURCE",
            python="Or an iterable of batches (inputs, labels).",
        ),
    ] = Converted(as_data, None)
    calibrate: Annotated[
        Converted[Samples, "Data | None"],
        Option(
            "What int8 finds its ranges with, from the training split; labels are ignored. By default what the pair's "
            "pipeline trains on.",
            metavar="SOURCE",
            python="In the same forms as `data`.",
        ),
    ] = Converted(as_data, None)
    keep_fp32: Annotated[
        Many[str], Option("A layer that int8 leaves in FP32, by the name of its weight.", metavar="WEIGHT")
    ] = Many()
    out: Annotated[Converted[str | Path, Path], Option("Parent folder of the bundle.", metavar="FOLDER")] = Converted(
        Path, "bundles"
    )
    batch_sizes: Annotated[
        Many[int],
        Option(
            "A batch size to measure beside the gated one. By default those of the pipeline.",
            flag="--batch-size",
            metavar="N",
            minimum=1,
        ),
    ] = Many()
    judged_output: Annotated[
        str | None,
        Option(
            "The output of the network that accuracy is judged by, one logit for each class. By default the one that "
            "the pair names.",
            metavar="NAME",
        ),
    ] = None
    gates: Annotated[
        Many[str],
        Option(
            "Judge by this instead of the pipeline's gates, as 'speedup >= 1.8'. Those of the target stay.",
            flag="--gate",
            metavar="GATE",
        ),
    ] = Many()
    budget: Annotated[
        float | None,
        Option(
            "Seconds of measuring, at most, for the workload that is judged. Each other one takes up to half as long.",
            metavar="SECONDS",
        ),
    ] = None
    threads: Annotated[
        Many[int],
        Option(
            "Physical cores to use, by default all that a CPU quota allows. Of several numbers each is measured, "
            "and the greatest is judged.",
            metavar="N",
            minimum=1,
        ),
    ] = Many()
    require_deployable: Annotated[bool, Option("Fail where the runtime's license forbids production use.")] = False

    def __post_init__(self) -> None:
        check_budget(self.budget)
        self.machine()

    def machine(self) -> "Machine":
        """This machine, with as many cores as the most threads that are asked for. Raises `UsageError`."""
        from .machine import describe

        return [describe(count) for count in sorted(self.threads)][-1] if self.threads else describe()

    def place(self, pair: str, target: "Target", precision: str) -> Path:
        """Where the bundle goes."""
        return self.out / f"{pair}-{target.at(precision)}"

    def comparison_place(self, pair: str) -> Path:
        """Where the comparison of several deployments goes."""
        return self.out / f"{pair}-comparison"


@dataclass(frozen=True, eq=False)
class ExportOptions(DeployOptions):
    """How a pair is exported to one target."""

    target: Annotated[
        "str | Target",
        Option("Where to deploy: a name from `targets list`, or a folder of your own.", metavar="TARGET"),
    ] = "native"
    _: KW_ONLY
    precision: Annotated[
        str,
        Option(
            "What the target computes in: fp32, int8 or default, as it offers. By default the first that it offers, "
            "fp32 most often; the bundle's name tells any other.",
            metavar="PRECISION",
        ),
    ] = ""


@dataclass(frozen=True, eq=False)
class CompareOptions(DeployOptions):
    """How a pair is deployed in several places, side by side."""

    targets: Annotated[
        Many["str | Target"],
        Option(
            "Where to deploy: a name from `targets list`, or a folder of your own. 'all' stands for every name that "
            "can run here; then one that passes is enough. Several are compared.",
            flag="--target",
            metavar="TARGET",
        ),
    ] = Many((ALL,))
    _: KW_ONLY
    precisions: Annotated[
        Many[str],
        Option(
            "What the targets compute in: fp32, int8 or default, as they offer; 'all' for each of these. By default "
            "the first that a target offers, fp32 most often; of all targets all.",
            flag="--precision",
            metavar="PRECISION",
        ),
    ] = Many()


@dataclass(frozen=True, eq=False)
class RunOptions(CompareOptions):
    """How a pipeline is run from its start to its end."""

    targets: Annotated[
        Many["str | Target"],
        Option(
            "Where to deploy instead of to the pipeline's targets: a name from `targets list`, a folder of your own, "
            "or 'all'. Several are compared.",
            flag="--target",
            metavar="TARGET",
        ),
    ] = Many()
    _: KW_ONLY
    runs: Annotated[Converted[str | Path, Path], Option("Parent folder of pairs.", metavar="FOLDER")] = Converted(
        Path, "runs"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class BundleOptions(EngineOptions):
    """How a bundle is run again."""

    target: Annotated[
        str | None, Option("The folder of the bundle's target, where that is not a built-in one.", metavar="FOLDER")
    ] = None
    threads: Annotated[
        int | None, Option("Physical cores to use, by default all that a CPU quota allows.", metavar="N")
    ] = None

    trust: Annotated[
        Many["str | Path"],
        Option(
            "A bundle whose compiled model may run as it is, though it was not built here. It is code: name only a "
            "bundle whose origin you know.",
            metavar="BUNDLE",
        ),
    ] = Many()

    def machine(self) -> "Machine":
        """This machine, with as many cores as are asked for. Raises `UsageError`."""
        from .machine import describe

        return describe(self.threads)

    def trusts(self, bundle: Path) -> bool:
        """Whether the user named this bundle as one whose code may run."""
        return any(Path(name).resolve() == bundle.resolve() for name in self.trust)

    def check_trust(self, *bundles: Path) -> None:
        """Ensure that each bundle that is trusted is one of those that run. Raises `UsageError`."""
        known = {bundle.resolve() for bundle in bundles}
        for name in self.trust:
            if Path(name).resolve() not in known:
                raise UsageError(
                    f"--trust {name}: that bundle is not run here.",
                    f"Name one of these: {', '.join(map(str, bundles))}.",
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckOptions(BundleOptions):
    """What a bundle is held against, by which gates, and for how long."""

    KINDS: ClassVar = ("against", "self_test", "baseline", "save")
    """The options that say what a check is against: exactly one of them is given."""

    against: Annotated[
        Converted[str | Path | None, Path | None],
        Option(
            "An older bundle. The two are measured in turns, each in the runtime versions that it was made with.",
            metavar="OLD",
        ),
    ] = Converted(as_path, None)
    self_test: Annotated[bool, Option("Hold the new bundle against itself: how far can a verdict be trusted here?")] = (
        False
    )
    baseline: Annotated[
        Converted[str | Path | None, Path | None],
        Option("A file of stored ratios, for where the old bundle can't run.", metavar="FILE"),
    ] = Converted(as_path, None)
    save: Annotated[
        Converted[str | Path | None, Path | None],
        Option(
            "The file to store this bundle's ratio in, beside earlier ones of the same model and runtime. Six of them, "
            "from different times, tell how far the ratio moves by itself.",
            metavar="FILE",
        ),
    ] = Converted(as_path, None)
    gates: Annotated[
        Many[str],
        Option(
            "Judge by this instead of 'latency.p50.ratio <= 1.03' (1.10 beside stored ratios). Those of the target "
            "stay.",
            flag="--gate",
            metavar="GATE",
        ),
    ] = Many()
    budget: Annotated[
        float,
        Option("Seconds of measuring, at most. It ends early when the gates are decided.", metavar="SECONDS"),
    ] = 60.0
    data: Annotated[
        Converted[Samples, "Data | None"],
        Option("Samples to compare the accuracy of the two bundles on, where there is an older one.", metavar="SOURCE"),
    ] = Converted(as_data, None)
    twins: Annotated[
        bool,
        Option(
            "Measure the dense twins too, for a quarter of the budget: they tell a slower engine from a worse export "
            "or model."
        ),
    ] = True
    against_target: Annotated[
        str | None, Option("The folder of the old bundle's target, where it is another one.", metavar="FOLDER")
    ] = None
    out: Annotated[
        Converted[str | Path, Path],
        Option("Parent folder of what is written: JSON, Markdown, JUnit XML.", metavar="FOLDER"),
    ] = Converted(Path, "checks")
    history: Annotated[
        Converted[str | Path | None, Path | None],
        Option("A file of JSON lines, to which this check adds one.", metavar="FILE"),
    ] = Converted(as_path, None)

    def __post_init__(self) -> None:
        check_budget(self.budget)
        kind = self.kind
        if self.data is not None and kind != "against":
            raise UsageError("--data goes with --against only.", "It compares the accuracy of two bundles.")

    @property
    def kind(self) -> "Kind":
        """What the check is against. Raises `UsageError` unless that is one thing."""
        kinds = [name for name in self.KINDS if getattr(self, name) not in (None, False)]
        if len(kinds) != 1:
            raise UsageError(
                "A check is against one thing." if kinds else "Nothing was named to check against.",
                "Give one of --against OLD, --baseline FILE, --save FILE and --self-test.",
            )
        return cast("Kind", kinds[0].replace("_", "-"))


@dataclass(frozen=True, eq=False)
class DeploymentRequest:
    """Where a pair is to go. Of a `survey` one that passes is enough; what it can't have is `missing`, with reasons."""

    deployments: "tuple[tuple[Target, str], ...]"  # targets, at precisions
    missing: Mapping[str, str] = field(default_factory=dict)
    survey: bool = False

    @property
    def several(self) -> bool:
        """Whether there is something to compare."""
        return len(self.deployments) + len(self.missing) > 1


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a pair: the bundles that were written, and how they compare where several were asked for."""

    bundles: "tuple[Bundle, ...]"
    comparison: "Comparison | None" = None

    @property
    def exit_code(self) -> int:
        """Of the comparison, or of the only bundle."""
        from .evidence.gates import combine

        if self.comparison is not None:
            return self.comparison.exit_code
        return combine(bundle.report.exit_code for bundle in self.bundles)
