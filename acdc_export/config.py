"""`Pipeline` and `Target`: what their TOML files say, with every mistake in a file told at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen

from . import resources
from .errors import ConfigError, UsageError, nearest
from .evidence import gates
from .files import is_name

STRICT: Any = {"extra": "forbid", "strict": False}
HOST = "host"
"""`runtime.python` of a target that runs in the interpreter that acdc-export itself runs in."""

DEFAULT_GATES = ("accuracy.drop <= 1.0", "speedup >= 1.0")
"""What a pair without a pipeline is judged by, beside the target's own gates."""

Positive = Annotated[int, Gt(0)]
BatchSizes = Annotated[tuple[Positive, ...], MinLen(1)]


@dataclass(frozen=True)
class Model:
    """`[model]`: a built-in network of `acdc_export.models`, or a user's `package.module:callable`."""

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataNames:
    """`[data]`: what is learnt from, and what is judged by; see `acdc_export.data.load` for the forms."""

    __pydantic_config__: ClassVar[Any] = STRICT

    train: str
    judge: str


@dataclass(frozen=True)
class Training:
    """`[training]`: SGD with momentum, and a learning rate that rises linearly, and then falls along a cosine or by
    steps. What is counted in epochs here is counted in steps where the schedule is."""

    __pydantic_config__: ClassVar[Any] = STRICT

    batch_size: Positive
    learning_rate: Annotated[float, Gt(0)]
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Ge(0)] = 0.0
    warmup_epochs: Annotated[int, Ge(0)] = 0
    milestones: tuple[Positive, ...] = ()  # a tenth of the rate after each of these epochs, instead of the cosine
    epochs: Positive | None = None  # of the run; where it is given, the schedule has to be as long
    drop_last: bool = True  # leave out the last batch of an epoch where it is smaller; one of a single sample always is
    shift: Annotated[int, Ge(0)] = 0  # augmentation of data in memory: random shifts by up to so many pixels
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    clip_norm: Annotated[float, Gt(0)] | None = None  # the longest that the gradient of a step may be
    amp: bool = False  # float16 where that is faster, with scaled gradients; on a GPU only
    average: Annotated[float, Gt(0), Lt(1)] | None = None  # decay of a running average of the weights, by step
    reestimate_batch_norm: bool = False  # at the end of each half, from the training data
    workers: Annotated[int, Ge(0)] = 4  # processes that read and augment images


Published = Literal["imagenet-100", "imagenet-150", "imagenet-200", "cifar-freq20", "cifar-dense13"]


@dataclass(frozen=True)
class ScheduleTable:
    """`[schedule]`: the phases of AC/DC, in one of three forms (`training.Schedule`): a published schedule by its name;
    the lengths of all phases, the first of them dense; or seven numbers in the order in which they come."""

    __pydantic_config__: ClassVar[Any] = STRICT

    published: Published | None = None
    phases: tuple[Positive, ...] = ()
    warmup: Positive | None = None  # dense
    sparse: Positive | None = None  # then these two alternate, `cycles` times
    dense: Positive | None = None
    cycles: Annotated[int, Ge(0)] | None = None
    last_sparse: Positive | None = None  # then once more, with
    last_dense: Positive | None = None  # a longer dense phase, at whose end the twin starts,
    final_sparse: Positive | None = None  # and the sparse half's final phase
    unit: Literal["epoch", "step"] = "epoch"

    NUMBERS: ClassVar = ("warmup", "sparse", "dense", "cycles", "last_sparse", "last_dense", "final_sparse")


@dataclass(frozen=True)
class Pattern:
    """`[pattern]`: which weights are kept."""

    __pydantic_config__: ClassVar[Any] = STRICT

    kind: str = "unstructured"  # of `patterns.FORMS`: or "block4", or "2:4"
    sparsity: Annotated[float, Gt(0), Lt(1)] | None = None  # that of "2:4" is its own
    scope: Literal["global", "uniform"] = "global"
    overrides: dict[str, Annotated[float, Gt(0), Lt(1)]] = field(default_factory=dict)  # of single layers
    exclude: tuple[str, ...] = ()  # layers left dense, by name or shell pattern,
    exclude_types: tuple[  # by type,
        Literal["Linear", "Conv1d", "Conv2d", "Conv3d", "depthwise", "MultiheadAttention"], ...
    ] = ()
    exclude_below: Annotated[int, Ge(0)] = 0  # or with fewer weights than this
    recurrent: bool = False  # whether the matrices of LSTM, GRU and RNN layers are pruned, too
    layer_collapse: Literal["warn", "refuse"] = "warn"  # where every weight of a layer would be zero


@dataclass(frozen=True)
class Judging:
    """`[judging]`: where the pair is exported to, and what it has to reach there."""

    __pydantic_config__: ClassVar[Any] = STRICT

    targets: Annotated[tuple[str, ...], MinLen(1)]
    batch_sizes: BatchSizes
    gated_batch_size: Positive
    gates: Annotated[tuple[str, ...], MinLen(1)]


@dataclass(frozen=True)
class Pipeline:
    """A train-then-deploy workflow: `pipelines/NAME.toml`."""

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str
    description: str
    model: Model
    data: DataNames
    training: Training
    schedule: ScheduleTable
    pattern: Pattern
    judging: Judging
    seed: int = 0
    text: str = ""  # the file, verbatim


@dataclass(frozen=True)
class Runtime:
    """`[runtime]`: what the runtime needs in order to run."""

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str
    python: str  # the interpreters it supports, ">=3.8,<3.12"; or "host", the one at hand, with nothing to install
    variables: dict[str, str] = field(default_factory=dict)  # set before it is imported
    machines: tuple[str, ...] = ("x86_64", "aarch64")
    compiles: bool = False  # `build` makes code, which is loaded where it was built, or where a user trusts its bundle


@dataclass(frozen=True)
class License:
    """`[license]`: what the runtime's license allows."""

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str
    url: str
    deployable: bool
    notice: str = ""
    accept: bool = False  # a user must accept it before the runtime is installed


@dataclass(frozen=True)
class Graph:
    """`[graph]`: the ONNX that the runtime takes, and how the canonical one gets there."""

    __pydantic_config__: ClassVar[Any] = STRICT

    passes: tuple[str, ...]
    ir_version: Annotated[int, Ge(3), Le(99)] | None = None
    opset: Annotated[int, Ge(7), Le(99)] | None = None  # the newest one it takes
    # The batch sizes that a model file takes: "any"; "each", one of its own; or "listed", all that were asked for,
    # which `build` in engine.py writes into one file.
    batch: Literal["any", "each", "listed"] = "any"
    # Batch sizes that suit the kernels, with their multiples. Others run in such micro-batches where that is faster.
    micro_batches: tuple[Positive, ...] = ()


@dataclass(frozen=True)
class Quantizer:
    """How one of our schemes quantizes: what its runtime's kernels do best with."""

    __pydantic_config__: ClassVar[Any] = STRICT

    weight_bits: Annotated[int, Ge(2), Le(8)] = 8
    # Layers of fewer MACs for each value that is converted stay in FP32: converting would take longer than INT8 saves.
    least_macs: Annotated[float, Ge(0)] = 0.0


@dataclass(frozen=True)
class Precision:
    """`[precisions.NAME]`: how near its outputs have to come, and how the graph or the runtime gets there.

    Without a scheme and without `build`, the runtime loads the FP32 graph and is told the name of the precision.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    tolerance: Annotated[float, Gt(0)]  # |output - reference| <= tolerance * (1 + |reference|)
    passes: tuple[str, ...] = ()  # of the graph, after those of [graph]
    scheme: str | None = None  # of `lowering.quantize`: the graph is quantized, on samples of its own
    quantizer: Quantizer = Quantizer()
    quantizer_without_vnni: Quantizer | None = None  # on an x86 processor without VNNI, where that is another one
    build: bool = False  # `build` in engine.py makes the runtime's own form of the graph, quantized or not
    samples: bool = False  # `build` calibrates on samples

    @property
    def quantized(self) -> bool:
        """Whether it rounds to ranges that are found on samples."""
        return self.scheme is not None or self.samples


@dataclass(frozen=True)
class Benchmark:
    """`[benchmark]`: how it is measured when the pipeline says nothing else."""

    __pydantic_config__: ClassVar[Any] = STRICT

    batch_sizes: BatchSizes = (1, 16)
    gated_batch_size: Positive = 16
    controls: tuple[str, ...] = ()  # targets that serve the dense twin beside this one
    control_precision: str = ""  # in which this target is a control; by default the first of its precisions
    budget: Annotated[float, Gt(0)] = 30.0  # seconds of measuring at the gated batch size; half of it at each other


@dataclass(frozen=True)
class Target:
    """Where a pair is deployed to: `targets/NAME/target.toml`. `folder` is where it was read from."""

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str
    description: str
    runtime: Runtime
    license: License
    graph: Graph
    precisions: Annotated[dict[str, Precision], MinLen(1)]  # on offer; the first is the default
    benchmark: Benchmark = Benchmark()
    pipeline: str = ""  # the default one, where a user names no pair
    requires: str = ""  # the pattern that a pair has to have, such as "2:4"
    gates: tuple[str, ...] = ()  # judged on every pair
    folder: Path = Path()

    @property
    def requirements(self) -> Path:
        return self.folder / "requirements.txt"

    @property
    def default_precision(self) -> str:
        """The precision where a user names none."""
        return next(iter(self.precisions))

    @property
    def control_precision(self) -> str:
        """The precision in which one would serve a dense network here."""
        return self.benchmark.control_precision or self.default_precision

    def at(self, precision: str) -> str:
        """Its name at a precision: `cpu`, `cpu-int8`."""
        return self.name if precision == self.default_precision else f"{self.name}-{precision}"


T = TypeVar("T")
Table = dict[str, Any]

_VERSIONS = r"\s*(>=|<|<=|==|>)\s*\d+\.\d+\s*(,\s*(>=|<|<=|==|>)\s*\d+\.\d+\s*)*"
_RENAMED = {
    "parity": "a table for each precision: [precisions.NAME] with tolerance",
    "graph.int8": "scheme (or build and samples) in [precisions.int8]",
    "graph.parts": "graph.micro_batches",
}
"""Keys of a target.toml that earlier releases had, and where what they said stands now."""


def load_pipeline(name: str) -> Pipeline:
    """Read the pipeline `name`, a built-in or a path.

    Raises:
        UsageError: there is none.
        ConfigError: the file has mistakes; all of them are told.
    """
    path = resources.find("pipelines", name)

    def check(table: Table) -> list[str]:
        return _pipeline_problems(table) + _built_in_problems(table, "judging.targets", "targets")

    text = _read(path)
    return _parse(Pipeline, text, str(path), check, text=text)


def parse_pipeline(text: str, where: str) -> Pipeline:
    """Parse a pipeline from TOML text; `where` names it in errors. Raises `ConfigError`.

    Its targets are not looked for: the pipeline of a pair may name some that are not here.
    """
    return _parse(Pipeline, text, where, _pipeline_problems, text=text)


def load_target(name: str) -> Target:
    """Read the target `name`, a built-in or a path to a folder.

    Raises:
        UsageError: there is none.
        ConfigError: the file has mistakes; all of them are told.
    """
    folder = resources.find("targets", name)
    path = folder / "target.toml"
    return _parse(Target, _read(path), str(path), partial(_target_problems, folder=folder), folder=folder)


def check_pattern(target: Target, kind: str, of: str) -> None:
    """Refuse what has not the pattern that a target requires; `of` names it. Raises `UsageError`."""
    from .patterns import satisfies

    if target.requires and not satisfies(kind, target.requires):
        raise UsageError(
            f"The target {target.name} requires the pattern {target.requires}; {of} has {kind}.",
            f'Train a pair with pattern.kind = "{target.requires}" in its pipeline, or choose another target.',
        )


def pass_names() -> list[str]:
    """The passes that a target may name: one file each in `lowering/passes`."""
    return _modules("passes")


def scheme_names() -> list[str]:
    """The schemes of INT8 that a target may name: one file each in `lowering/quantize/schemes`."""
    return _modules("quantize/schemes")


def _modules(folder: str) -> list[str]:
    """The modules in a folder of `lowering`, by their files: a base installation can't import them."""
    here = Path(__file__).parent / "lowering" / folder
    return sorted(path.stem for path in here.glob("*.py") if not path.stem.startswith("_"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"can't be read: {error}"]) from error


def _parse(kind: type[T], source: str, where: str, check: Callable[[Table], list[str]], **known: Any) -> T:
    """TOML text to a frozen dataclass; `known` are fields that the program sets.

    Structure is checked by pydantic, meaning by `check`, which sees the table as it is, so that a missing key hides
    no misspelt gate.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        table = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(where, [f"not valid TOML: {error}"]) from error
    problems = [f"{key}: set by the program, not in the file" for key in known if key in table]
    try:
        value = TypeAdapter(kind).validate_python({**table, **known})
    except ValidationError as error:
        problems += [_problem(kind, mistake["loc"], mistake["type"], mistake["msg"]) for mistake in error.errors()]
    problems += check(table)
    if problems:
        raise ConfigError(where, problems)
    return value


def _problem(kind: type, location: tuple[int | str, ...], code: str, message: str) -> str:
    where = ".".join(str(part) for part in location)
    if code in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _keys(kind, location[:-1])
        return f"{where}: unknown key{nearest(str(location[-1]), known)}"
    if code in ("missing", "missing_argument"):
        return f"{where}: missing"
    message = message.replace("valid tuple", "list").replace("Tuple", "List").replace("dictionary", "table")
    return f"{where}: {message[0].lower()}{message[1:]}"


def _keys(kind: type, location: tuple[int | str, ...]) -> list[str]:
    """The keys that the table at `location` may have."""
    table: Any = kind
    for part in location:
        hint = get_type_hints(table).get(str(part))
        table = next((option for option in (hint, *get_args(hint)) if is_dataclass(option)), table)
    return [item.name for item in fields(table) if item.name not in ("text", "folder")]


def _pipeline_problems(table: Table) -> list[str]:
    problems = _batch_problems(table, "judging")
    problems += [f"judging.gates: {problem}" for problem in gates.problems(_texts(table, "judging.gates"))]
    problems += _folder_name_problems(table, "name")
    problems += _schedule_problems(table) + _pattern_problems(table)
    judge = _texts(table, "data.judge")
    if judge and judge == _texts(table, "data.train"):
        problems.append(f"data.judge: '{judge[0]}' is what the pair is trained on")
    return problems


def _schedule_problems(table: Table) -> list[str]:
    """A schedule in no form, in two, or in a part of one; the lengths of phases that don't end sparse."""
    given = _at(table, "schedule")
    if not isinstance(given, dict):
        return []
    numbers = [key for key in ScheduleTable.NUMBERS if key in given]
    forms = [key for key in ("published", "phases") if key in given] + (["warmup, sparse, ..."] if numbers else [])
    if len(forms) != 1:
        said = f"{' and '.join(forms)} are given" if forms else "no phases are given"
        return [f"schedule: {said}; it takes one of published, phases, or {', '.join(ScheduleTable.NUMBERS)}"]
    problems = []
    if numbers:
        problems = [f"schedule.{key}: missing" for key in ScheduleTable.NUMBERS if key not in given]
    lengths = given.get("phases")
    if isinstance(lengths, list) and (len(lengths) < 2 or len(lengths) % 2):
        problems.append(
            f"schedule.phases: {len(lengths)} phases; they begin with a dense one and end with a sparse one, so that "
            "their number is even"
        )
    if "published" in given and given.get("unit") == "step":
        problems.append("schedule.unit: the published schedules are in epochs")
    return problems


def _pattern_problems(table: Table) -> list[str]:
    """A kind that there isn't, and a sparsity that is missing, or stands beside that of N:M."""
    given = _at(table, "pattern")
    name = given.get("kind", "unstructured") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(name, str):
        return []
    if problems := _kind_problems("pattern.kind", name):
        return problems
    from .patterns import parse

    if parse(name).sparsity is None:
        return [] if "sparsity" in given else ["pattern.sparsity: missing"]
    unused = [key for key in ("sparsity", "scope", "overrides") if key in given]
    return [f"pattern.{key}: {name} has none; its sparsity is its own" for key in unused]


def _kind_problems(where: str, name: str) -> list[str]:
    """A kind of sparsity that there isn't."""
    from .patterns import parse  # numpy comes with it, which nothing else here needs

    try:
        parse(name)
    except UsageError as error:
        problem, remedy = (text[0].lower() + text[1:].removesuffix(".") for text in (error.message, error.remedy))
        return [f"{where}: {problem}; {remedy}"]
    return []


def _target_problems(table: Table, folder: Path) -> list[str]:
    problems = _batch_problems(table, "benchmark")
    problems += [f"gates: {problem}" for problem in gates.problems(_texts(table, "gates"))]
    problems += _graph_problems(table) + _precision_problems(table)
    problems += _built_in_problems(table, "benchmark.controls", "targets")
    problems += _built_in_problems(table, "pipeline", "pipelines")
    problems += _folder_name_problems(table, "name") + _folder_name_problems(table, "runtime.name")
    for pattern in _texts(table, "requires"):
        problems += _kind_problems("requires", pattern)
    for name in _texts(table, "name"):
        if name != folder.resolve().name:
            problems.append(f"name: '{name}' is not the name of its folder, '{folder.resolve().name}'")
    for python in _texts(table, "runtime.python"):
        if python != HOST and not re.fullmatch(_VERSIONS, python):
            problems.append(f"runtime.python: '{python}' is neither of the form '>=3.8,<3.12' nor '{HOST}'")
    if _at(table, "runtime.compiles") is True:
        problems += [f"precisions.{name}.build: what compiles builds every precision" for name in _unbuilt(table)]
    needed = ("engine.py",) if _at(table, "runtime.python") == HOST else ("engine.py", "requirements.txt")
    problems += [f"{file} is missing beside target.toml" for file in needed if not (folder / file).is_file()]
    return problems


def _graph_problems(table: Table) -> list[str]:
    """Passes that there aren't, batch sizes that nothing writes into a file, and keys of earlier releases."""
    problems = [f"{old}: is now {new}" for old, new in _RENAMED.items() if _at(table, old) is not None]
    passes = _texts(table, "graph.passes")
    problems += _pass_problems("graph.passes", passes)
    batch = _at(table, "graph.batch") or "any"
    if "static_batch" in passes and batch != "each":
        problems.append("graph.batch: the pass 'static_batch' writes a batch size into each file; it has to be 'each'")
    if batch == "listed":
        problems += [
            f"precisions.{name}.build: only `build` puts several batch sizes into a file" for name in _unbuilt(table)
        ]
    if _at(table, "graph.micro_batches") and batch != "each":
        problems.append("graph.micro_batches: they need batch = 'each', a file of its own for each batch size")
    return problems


def _unbuilt(table: Table) -> list[str]:
    """The precisions without `build`."""
    precisions = _at(table, "precisions")
    names = precisions if isinstance(precisions, dict) else ()
    return [name for name in names if _at(table, f"precisions.{name}.build") is not True]


def _precision_problems(table: Table) -> list[str]:
    problems, precisions = [], _at(table, "precisions")
    for name in precisions if isinstance(precisions, dict) else ():
        where = f"precisions.{name}"
        if not is_name(name):
            problems.append(f"{where}: '{name}' can't be a part of a folder's name (letters, digits, '.', '_', '-')")
            continue
        problems += _pass_problems(f"{where}.passes", _texts(table, f"{where}.passes"))
        for scheme in _texts(table, f"{where}.scheme"):
            if scheme not in scheme_names():
                problems.append(f"{where}.scheme: unknown scheme '{scheme}'{nearest(scheme, scheme_names())}")
        if _at(table, f"{where}.samples") and not _at(table, f"{where}.build"):
            problems.append(f"{where}.samples: only `build` calibrates on them; a scheme of ours has its own")
        elif _at(table, f"{where}.samples") and _at(table, f"{where}.scheme"):
            problems.append(f"{where}.samples: the scheme has its own; `build` gets the graph that it quantized")
    control = _at(table, "benchmark.control_precision")
    if isinstance(precisions, dict) and control and control not in precisions:
        problems.append(
            f"benchmark.control_precision: there is no precision '{control}'{nearest(control, list(precisions))}"
        )
    return problems


def _pass_problems(where: str, names: list[str]) -> list[str]:
    known = pass_names()
    return [f"{where}: unknown pass '{name}'{nearest(name, known)}" for name in names if name not in known]


def _at(table: Table, path: str) -> Any:
    """What is at `a.b` of a table that may hold anything, or None."""
    value: Any = table
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _texts(table: Table, path: str) -> list[str]:
    """The strings at `a.b`: the one, those of a list, or the keys of a table."""
    value = _at(table, path)
    return [item for item in (value if isinstance(value, list | dict) else [value]) if isinstance(item, str)]


def _built_in_problems(table: Table, path: str, kind: str) -> list[str]:
    """Names that are neither built-in nor a path."""
    known = resources.names(kind)
    return [
        f"{path}: unknown {kind[:-1]} '{name}'{nearest(name, known)}"
        for name in _texts(table, path)
        if name and not ("/" in name or name.endswith(".toml") or name in known)
    ]


def _folder_name_problems(table: Table, path: str) -> list[str]:
    return [
        f"{path}: '{name}' can't be the name of a folder (letters, digits, '.', '_', '-')"
        for name in _texts(table, path)
        if not is_name(name)
    ]


def _batch_problems(table: Table, path: str) -> list[str]:
    sizes, gated = _at(table, f"{path}.batch_sizes"), _at(table, f"{path}.gated_batch_size")
    if not isinstance(sizes, list) or gated is None or gated in sizes:
        return []
    return [f"{path}.gated_batch_size: {gated} is not among batch_sizes {sizes}"]
