"""The command. It parses, calls `workflow`, and prints: results to standard output, everything else to standard error.

What is heavy is imported inside the commands, so that `--help` and a misspelt option answer at once.
"""

from __future__ import annotations

import json as jsons
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import AcdcExportError, ConfigError, RuntimeUnavailable, UsageError

if TYPE_CHECKING:
    from .config import Target
    from .options import Outcome
    from .progress import Progress
    from .records.inspection import Training

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
targets_app = typer.Typer(help="List, show, copy, check and install deployment targets.", no_args_is_help=True)
pipelines_app = typer.Typer(help="List, show, copy and check train-then-deploy pipelines.", no_args_is_help=True)
app.add_typer(targets_app, name="targets")
app.add_typer(pipelines_app, name="pipelines")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only the result, or the error.")]
Out = Annotated[Path, typer.Option("--out", help="Parent folder of the bundle.")]
Runs = Annotated[Path, typer.Option("--runs", help="Parent folder of pairs.")]
Threads = Annotated[int | None, typer.Option(help="Physical cores to use (default: all).")]
ManyThreads = Annotated[
    list[int] | None,
    typer.Option(
        "--threads", min=1, help="Physical cores to use (default: all); repeated, each is measured, the most judged."
    ),
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-license", metavar="RUNTIME", help="Accept the license of a runtime ('deepsparse'); remembered."
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="SOURCE", help="What to judge by: FILE.npz, NAME:SPLIT or package.module:factory."),
]
Calibrate = Annotated[
    str | None, typer.Option("--calibrate", metavar="SOURCE", help="Calibration data, from the training split.")
]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision", metavar="PRECISION", help="fp32 (the default), int8, default or all, as targets offer; repeats."
    ),
]
KeepFp32 = Annotated[
    list[str] | None,
    typer.Option("--keep-fp32", metavar="WEIGHT", help="A layer that int8 leaves in float; may be repeated."),
]
BatchSizes = Annotated[
    list[int] | None,
    typer.Option("--batch-size", min=1, help="Measure this batch size beside the gated one; may be repeated."),
]
Gates = Annotated[
    list[str] | None,
    typer.Option("--gate", metavar="GATE", help="Judge by this instead, as 'speedup >= 1.8'; may be repeated."),
]
Budget = Annotated[float | None, typer.Option(metavar="SECONDS", help="How long to measure, at most.")]
Deployable = Annotated[
    bool, typer.Option("--require-deployable", help="Fail where the runtime's license forbids production use.")
]


def main() -> None:
    """Run the command; `__main__` is the entry point."""
    app(prog_name="acdc-export")


@app.callback(invoke_without_command=True)
def export(
    context: typer.Context,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help="Where to deploy: a name from `targets list`, a folder of your own, or all; repeated, to compare.",
        ),
    ] = None,
    pair: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="The pair (default: the target's default pair, trained on first use)."),
    ] = None,
    precision: Precisions = None,
    data: DataOption = None,
    calibrate: Calibrate = None,
    keep_fp32: KeepFp32 = None,
    out: Out = Path("bundles"),
    runs: Runs = Path("runs"),
    batch_size: BatchSizes = None,
    gate: Gates = None,
    budget: Budget = None,
    threads: ManyThreads = None,
    require_deployable: Deployable = False,
    accept_license: Accept = None,
    json: Json = False,
    quiet: Quiet = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Export the sparse half of an AC/DC pair, and prove accuracy and latency against its dense twin.

    \b
      acdc-export --target cpu                      the target's default pair: trained, or reused
      acdc-export --pair runs/mine --target cpu     your own
      acdc-export --pair runs/mine --target all     where to deploy it: every target and precision, side by side
      acdc-export run digits                        train, export and judge by a pipeline

    Exit codes: 0 every gate passed, 1 a gate failed, 2 usage, 3 a runtime is missing or a gate could not be
    measured, 4 inconclusive, 130 interrupted, 70 a bug.
    """
    if version:
        from .version import __version__

        typer.echo(f"acdc-export {__version__}")
        raise typer.Exit
    with _guard(json):
        if context.invoked_subcommand is not None:
            _refuse_misplaced(context)
            return
        if not target:
            raise UsageError(
                "No target was named.", "Say where to deploy, with --target cpu; see `acdc-export targets list`."
            )
        if len(pair or ()) > 1:
            raise UsageError("One run takes one pair.", "Repeat the command for each.")
        from .config import load_target

        definitions = [one if one == "all" else load_target(one) for one in target]
        from . import workflow  # only now: a misspelt name is answered at once

        options: dict[str, Any] = {
            "precisions": precision or (),
            "data": data,
            "calibrate": calibrate,
            "keep_fp32": keep_fp32 or (),
            "out": out,
            "batch_sizes": batch_size or (),
            "gates": gate or (),
            "budget": budget,
            "threads": threads,
            "require_deployable": require_deployable,
            "accept_licenses": accept_license or (),
            "ask": _ask(json, quiet),
            "progress": _progress(json, quiet),
        }
        with redirect_stdout(sys.stderr):  # for what a user's own code prints: standard output is for the result
            if pair:
                outcome = workflow.compare(pair[0], definitions, **options)
            else:
                outcome = workflow.run(_default_pipeline(definitions), definitions, runs=runs, **options)
        _show(outcome, json)
        raise typer.Exit(outcome.exit_code)


def _default_pipeline(targets: Sequence[Target | str]) -> str:
    """That of the targets, where they agree on one."""
    from . import resources
    from .config import load_target

    every = [load_target(name) for name in resources.names("targets")] if "all" in targets else []
    meant = [*every, *(one for one in targets if not isinstance(one, str))]
    named = {one.pipeline for one in meant}
    if len(named) > 1 or "" in named:
        names = ", ".join(one.name for one in meant)
        raise UsageError(f"{names}: no default pipeline that all of them have.", "Name a pair with --pair.")
    return named.pop()


@app.command()
def train(
    pipeline: Annotated[str, typer.Argument(help="A name from `pipelines list`, or a TOML file of your own.")],
    runs: Runs = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take one step in each phase, export what comes of it, keep nothing.")
    ] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Begin anew where an earlier run was interrupted.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a pair, sparse half and dense twin, and write it to RUNS/NAME.

    A run that was interrupted goes on where it was, from RUNS/NAME.checkpoint.
    """
    with _guard(json):
        from . import workflow

        if dry_run:
            with redirect_stdout(sys.stderr):
                rehearsal = workflow.rehearse(pipeline, progress=_progress(json, quiet))
            _print(rehearsal, json)
            return
        with redirect_stdout(sys.stderr):
            pair = workflow.train(pipeline, runs, anew=anew, progress=_progress(json, quiet))
        metrics = pair.record.metrics
        if json:
            _print_json({"pair": str(pair.path), "sparsity": pair.record.pattern.achieved, "metrics": metrics})
        else:
            typer.echo(
                f"Wrote the pair {pair.path}: {100 * pair.record.pattern.achieved:.2f} % zeros in the pruned layers."
            )


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="A name from `pipelines list`, or a TOML file of your own.")],
    precision: Precisions = None,
    data: DataOption = None,
    out: Out = Path("bundles"),
    runs: Runs = Path("runs"),
    gate: Gates = None,
    budget: Budget = None,
    threads: ManyThreads = None,
    require_deployable: Deployable = False,
    accept_license: Accept = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a pipeline's pair (or reuse it), export it to the pipeline's targets, and judge it there."""
    with _guard(json):
        from . import workflow

        with redirect_stdout(sys.stderr):
            outcome = workflow.run(
                pipeline,
                precisions=precision or (),
                runs=runs,
                out=out,
                data=data,
                gates=gate or (),
                budget=budget,
                threads=threads,
                require_deployable=require_deployable,
                accept_licenses=accept_license or (),
                ask=_ask(json, quiet),
                progress=_progress(json, quiet),
            )
        _show(outcome, json)
        raise typer.Exit(outcome.exit_code)


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(metavar="NEW", help="The new bundle's folder.")],
    against: Annotated[
        Path | None, typer.Option(metavar="OLD", help="An older bundle, measured in turns with the new one.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Stored ratios, where the old bundle can't run.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Store its ratio, beside others of the same model.")
    ] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="The new bundle against itself.")] = False,
    gate: Gates = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="How long to measure, at most.")] = 60.0,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Compare accuracy too, on these samples (with --against).")
    ] = None,
    twins: Annotated[
        bool, typer.Option("--twins/--no-twins", help="Measure the dense twins too: they tell causes apart.")
    ] = True,
    target: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The bundles' target, where it is not a built-in one.")
    ] = None,
    against_target: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The old bundle's target, where it is another one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Parent folder of what is written: JSON, Markdown, JUnit XML.")] = Path(
        "checks"
    ),
    history: Annotated[Path | None, typer.Option(metavar="FILE", help="Add a line to this file of JSON lines.")] = None,
    threads: Threads = None,
    accept_license: Accept = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Has a bundle become slower? It is measured in turns with an older one, on this machine: a gate for CI.

    \b
      acdc-export check bundles/new --against bundles/old     both, interleaved
      acdc-export check bundles/new --save ci/cpu.json        store its ratios, for where the old one can't run
      acdc-export check bundles/new --baseline ci/cpu.json    against stored ratios

    Without --gate: 'latency.p50.ratio <= 1.03', a slowdown of 3 % is found; with --baseline 1.10. Store six
    checks of a bundle at different times: they tell how far the ratio moves by itself. Exit codes as for an export.
    """
    with _guard(json):
        from . import workflow

        with redirect_stdout(sys.stderr):
            found = workflow.check(
                bundle,
                against=against,
                baseline=baseline,
                save=save,
                self_test=self_test,
                gates=gate or (),
                budget=budget,
                data=data,
                twins=twins,
                target=target,
                against_target=against_target,
                out=out,
                history=history,
                threads=threads,
                accept_licenses=accept_license or (),
                ask=_ask(json, quiet),
                progress=_progress(json, quiet),
            )
        _print(found, json)
        raise typer.Exit(found.exit_code)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    target: Annotated[str | None, typer.Option(help="The target's folder, where it is not a built-in one.")] = None,
    threads: Threads = None,
    accept_license: Accept = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a bundle on this machine: its files, and its golden outputs in its runtime."""
    with _guard(json):
        from . import workflow

        found = workflow.verify(
            bundle,
            target=target,
            threads=threads,
            accept_licenses=accept_license or (),
            ask=_ask(json, quiet),
            progress=_progress(json, quiet),
        )
        _print(found, json)
        raise typer.Exit(found.exit_code)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="An ONNX file, a pair, a bundle, or a .safetensors checkpoint.")],
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Write a picture of the run: phases and accuracy.")
    ] = None,
    json: Json = False,
) -> None:
    """Count zeros, 2:4 groups and 1x4 blocks, layer by layer; of a pair or bundle, also how it was trained."""
    with _guard(json):
        from . import inspection

        found = inspection.inspect(path)
        if picture is not None:
            _draw(picture, path, found.training)
        _print(found, json)


def _draw(picture: Path, path: Path, trained: Training | None) -> None:
    from . import present
    from .files import output_errors

    if trained is None:
        raise UsageError(f"{path} doesn't say how it was trained.", "Give the folder of a pair or a bundle.")
    with output_errors(picture, "with --picture"):
        present.draw(picture, trained)


@targets_app.command("list")
def targets_list(json: Json = False) -> None:
    """The built-in targets, and whether each can run here."""
    with _guard(json):
        from . import engines, resources
        from .config import load_target

        found = [load_target(name) for name in resources.names("targets")]
        states = [engines.status(target) for target in found]
        rows = [
            (target.name, state.state, target.description, state.detail)
            for target, state in zip(found, states, strict=True)
        ]
        if json:
            _print_json([dict(zip(("name", "state", "description", "detail"), row, strict=True)) for row in rows])
        else:
            _print_rows(rows)


@targets_app.command("show")
def targets_show(name: str) -> None:
    """Print a target's target.toml."""
    with _guard():
        from . import resources

        typer.echo((resources.find("targets", name) / "target.toml").read_text(), nl=False)


@targets_app.command("copy")
def targets_copy(name: str, to: Path) -> None:
    """Copy a built-in target's folder, as a start for one of your own."""
    with _guard():
        from . import resources

        resources.copy("targets", name, to)
        typer.echo(f"Copied the target {name} to {to}. Use it with --target {_as_path(to)}")


@targets_app.command("check")
def targets_check(name: str) -> None:
    """Check a target's files without running anything."""
    with _guard():
        from .config import load_target

        typer.echo(f"{load_target(name).name}: no mistakes found.")


@targets_app.command("install")
def targets_install(name: str, accept_license: Accept = None, quiet: Quiet = False) -> None:
    """Create the environment of a target, which is otherwise done on first use."""
    with _guard():
        from . import engines
        from .config import load_target

        target = load_target(name)
        environment = engines.ensure(
            target,
            accept_licenses=frozenset(accept_license or ()),
            progress=_progress(False, quiet),
            ask=_ask(False, quiet),
        )
        typer.echo(f"{target.name} is ready: {environment.python}")


@pipelines_app.command("list")
def pipelines_list(json: Json = False) -> None:
    """The built-in pipelines."""
    with _guard(json):
        from . import resources
        from .config import load_pipeline

        found = [load_pipeline(name) for name in resources.names("pipelines")]
        rows = [(item.name, ", ".join(item.judging.targets), item.description) for item in found]
        if json:
            _print_json([dict(zip(("name", "targets", "description"), row, strict=True)) for row in rows])
        else:
            _print_rows(rows)


@pipelines_app.command("show")
def pipelines_show(name: str) -> None:
    """Print a pipeline's TOML."""
    with _guard():
        from . import resources

        typer.echo(resources.find("pipelines", name).read_text(), nl=False)


@pipelines_app.command("copy")
def pipelines_copy(name: str, to: Path) -> None:
    """Copy a built-in pipeline's file, as a start for one of your own."""
    with _guard():
        from . import resources

        resources.copy("pipelines", name, to)
        typer.echo(f"Copied the pipeline {name} to {to}. Use it with: acdc-export run {_as_path(to)}")


@pipelines_app.command("check")
def pipelines_check(name: str) -> None:
    """Check a pipeline's file, and build its network, without reading data or training anything."""
    with _guard():
        from . import training
        from .config import load_pipeline

        pipeline = load_pipeline(name)
        try:
            found = training.problems(pipeline)
        except RuntimeUnavailable as error:
            typer.echo(f"{pipeline.name}: no mistakes found in the file.\nIts network was not built. {error}")
            return
        if found:
            raise ConfigError(name, found)
        typer.echo(f"{pipeline.name}: no mistakes found.")


@contextmanager
def _guard(json: bool = False) -> Iterator[None]:
    """Turn every end of a command into its exit code, and a user's mistake into two lines."""
    try:
        yield
    except AcdcExportError as error:
        if json:
            _print_json({"error": {"message": error.message, "remedy": error.remedy}, "exit_code": error.exit_code})
        else:
            typer.echo(f"error: {error.message}\n{error.remedy}", err=True)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):  # Abort: Ctrl-C or Ctrl-D at a prompt
        typer.echo("Interrupted. What was there before is unchanged.", err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except OSError as error:  # a file or stream that the system refuses: nothing that a bug report would mend
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {where}{error.strerror}.\nCheck the permissions and the free space there.", err=True)
        raise typer.Exit(2) from None
    except Exception:
        import traceback

        traceback.print_exc()
        typer.echo("This is a bug in acdc-export. Please report it with the lines above.", err=True)
        raise typer.Exit(70) from None


def _refuse_misplaced(context: typer.Context) -> None:
    """Options before a command would be read and forgotten."""
    given = [name for name in context.params if context.get_parameter_source(name).name != "DEFAULT"]  # type: ignore[union-attr]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        command = context.invoked_subcommand
        raise UsageError(
            f"{option} stands before '{command}'.", f"Options of a command come after it: {command} {option}"
        )


def _progress(json: bool, quiet: bool) -> Progress:
    from .present.progress import TerminalProgress
    from .progress import SILENT

    return SILENT if json or quiet else TerminalProgress()


def _ask(json: bool, quiet: bool) -> Any:
    """A prompt for a license, where there is somebody to answer it."""
    if json or quiet or sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(notice: str) -> bool:
        typer.echo(notice, err=True)
        try:
            return typer.confirm("Do you accept this license?", err=True)
        except typer.Abort:
            typer.echo(err=True)  # the prompt's line is not ended yet
            raise

    return ask


def _show(outcome: Outcome, json: bool) -> None:
    """The report of the only bundle, or the comparison of several."""
    if outcome.comparison is not None:
        _print(outcome.comparison, json)
    else:
        (bundle,) = outcome.bundles
        _print(bundle.report, json, bundle=str(bundle.path))


def _print(record: object, json: bool, **more: str) -> None:
    """A record for people, or as JSON with what else is to be said."""
    if json:
        from .records import to_json

        _print_json({**more, **to_json(record)})
    else:
        from . import present

        present.show(record)


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(workload.ljust(width) for workload, width in zip(row, widths, strict=True)).rstrip())


def _print_json(value: Any) -> None:
    typer.echo(jsons.dumps(value, indent=2))


def _as_path(path: Path) -> str:
    """A path as an option takes it: never to be mistaken for a built-in's name."""
    return str(path) if "/" in str(path) else f"./{path}"
