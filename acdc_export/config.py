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
PRECISIONS = ("fp32", "default", "int8")
"""What a half can be deployed in. "default" is what a runtime computes in by itself, where that is not float32."""

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
    """`[pattern]`: which weights live."""

    __pydantic_config__: ClassVar[Any] = STRICT

    kind: str = "unstructured"  # of `patterns.FORMS`: or "block4", or "2:4"
    sparsity: Annotated[float, Gt(0), Lt(1)] | None = None  # that of "2:4" is its own
    scope: Literal["global", "uniform"] = "global"
    overrides: dict[str, Annotated[float, Gt(0), Lt(1)]] = field(default_factory=dict)  # of single layers
    exclude: tuple[str, ...] = ()  # layers left dense, by name or shell pattern,
    exclude_types: tuple[Literal["Linear", "Conv1d", "Conv2d", "Conv3d", "depthwise"], ...] = ()  # by type,
    exclude_below: Annotated[int, Ge(0)] = 0  # or with fewer weights than this


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
    python: str  # the interpreters it supports, ">=3.8,<3.12"
    variables: dict[str, str] = field(default_factory=dict)  # set before it is imported
    machines: tuple[str, ...] = ("x86_64", "aarch64")


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
    # Batch sizes that suit it, with their multiples. Another one is run in such parts where that is found to be faster.
    parts: tuple[Positive, ...] = ()
    # The form of its integers: a scheme of `graph.quantize`, or "runtime", what `build` in engine.py makes of float32.
    int8: Literal["convinteger", "qdq", "runtime"] | None = None


@dataclass(frozen=True)
class Benchmark:
    """`[benchmark]`: how it is measured when the pipeline says nothing else."""

    __pydantic_config__: ClassVar[Any] = STRICT

    batch_sizes: BatchSizes = (1, 16)
    gated_batch_size: Positive = 16
    controls: tuple[str, ...] = ()  # targets that serve the dense twin beside this one
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
    parity: Annotated[dict[str, Annotated[float, Gt(0)]], MinLen(1)]  # tolerance by precision: those on offer
    benchmark: Benchmark = Benchmark()
    pipeline: str = ""  # the default one, where a user names no pair
    gates: tuple[str, ...] = ()  # judged on every pair
    folder: Path = Path()

    @property
    def requirements(self) -> Path:
        return self.folder / "requirements.txt"

    def at(self, precision: str) -> str:
        """Its name at a precision: `cpu`, `cpu-int8`."""
        return self.name if precision == "fp32" else f"{self.name}-{precision}"


T = TypeVar("T")
Table = dict[str, Any]


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


def pass_names() -> list[str]:
    """The passes that a target may name: one file each in `lowering/passes`."""
    here = Path(__file__).parent / "lowering" / "passes"
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
        problems += [_problem(kind, found["loc"], found["type"], found["msg"]) for found in error.errors()]
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
    from .patterns import parse  # numpy comes with it, which nothing else here needs

    given = _at(table, "pattern")
    name = given.get("kind", "unstructured") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(name, str):
        return []
    try:
        kind = parse(name)
    except UsageError as error:
        problem, remedy = (text[0].lower() + text[1:].removesuffix(".") for text in (error.message, error.remedy))
        return [f"pattern.kind: {problem}; {remedy}"]
    if kind.sparsity is None:
        return [] if "sparsity" in given else ["pattern.sparsity: missing"]
    unused = [key for key in ("sparsity", "scope", "overrides") if key in given]
    return [f"pattern.{key}: {name} has none; its sparsity is its own" for key in unused]


def _target_problems(table: Table, folder: Path) -> list[str]:
    problems = _batch_problems(table, "benchmark")
    problems += [f"gates: {problem}" for problem in gates.problems(_texts(table, "gates"))]
    for name in _texts(table, "graph.passes"):
        if name not in pass_names():
            problems.append(f"graph.passes: unknown pass '{name}'{nearest(name, pass_names())}")
    if _at(table, "graph.parts") and "static_batch" not in _texts(table, "graph.passes"):
        problems.append("graph.parts: without the pass 'static_batch' a graph takes any batch as it is")
    for name in _texts(table, "parity"):
        if name not in PRECISIONS:
            problems.append(f"parity: graphs can't be lowered to '{name}', only to {', '.join(PRECISIONS)}")
    if "int8" in _texts(table, "parity") and not _texts(table, "graph.int8"):
        problems.append("parity.int8: the form of its integers is missing, graph.int8")
    problems += _built_in_problems(table, "benchmark.controls", "targets")
    problems += _built_in_problems(table, "pipeline", "pipelines")
    problems += _folder_name_problems(table, "name") + _folder_name_problems(table, "runtime.name")
    for name in _texts(table, "name"):
        if name != folder.resolve().name:
            problems.append(f"name: '{name}' is not the name of its folder, '{folder.resolve().name}'")
    for python in _texts(table, "runtime.python"):
        if not re.fullmatch(r"\s*(>=|<|<=|==|>)\s*\d+\.\d+\s*(,\s*(>=|<|<=|==|>)\s*\d+\.\d+\s*)*", python):
            problems.append(f"runtime.python: '{python}' is not of the form '>=3.8,<3.12'")
    for file in ("engine.py", "requirements.txt"):
        if not (folder / file).is_file():
            problems.append(f"{file} is missing beside target.toml")
    return problems


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
