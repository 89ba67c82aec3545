"""`acdc-export` itself: a pair, put into one deployment or several, and judged there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..keywords import described
from ..options import ALL, CompareOptions, RunOptions
from .output import Output
from .parsing import command, flag

if TYPE_CHECKING:
    from ..config import Target

_RUNS: Path = flag(described(RunOptions)["runs"])


@command(CompareOptions)
def export(
    context: typer.Context,
    pair: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="The pair (default: the target's default pair, trained on first use)."),
    ] = None,
    *,
    output: Output,
    runs: Path = _RUNS,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    **options: Any,
) -> int | None:
    """Export the sparse half of an AC/DC pair, and prove accuracy and latency against its dense twin.

    \b
      acdc-export --target native                  the target's default pair
      acdc-export --pair runs/mine --target native a pair of your own
      acdc-export --pair runs/mine --target all    everywhere, side by side
      acdc-export run digits                       train, export and judge

    Exit codes: 0 every gate passed, 1 a gate failed, 2 usage, 3 a runtime is missing or a gate could not be
    measured, 4 inconclusive, 130 interrupted, 70 a bug.
    """
    if version:
        from ..version import __version__

        output.text(f"acdc-export {__version__}")
        return 0
    if context.invoked_subcommand is not None:
        _refuse_misplaced(context)
        return None
    if not options.get("targets"):
        raise UsageError(
            "No target was named.", "Say where to deploy, with --target native; see `acdc-export targets list`."
        )
    if len(pair or ()) > 1:
        raise UsageError("One run takes one pair.", "Repeat the command for each.")
    from ..config import load_target

    options["targets"] = [name if name == ALL else load_target(name) for name in options["targets"]]
    from .. import workflow  # only now: a misspelt name is answered at once

    if pair:
        outcome = workflow.compare(pair[0], **options, **output.dialog)
    else:
        outcome = workflow.run(_default_pipeline(options["targets"]), runs=runs, **options, **output.dialog)
    output.show_outcome(outcome)
    return outcome.exit_code


def _default_pipeline(targets: Sequence[Target | str]) -> str:
    """The pipeline of the targets, where they agree on one."""
    from .. import resources
    from ..config import load_target

    every = [load_target(name) for name in resources.names("targets")] if ALL in targets else []
    meant = [*every, *(target for target in targets if not isinstance(target, str))]
    named = {target.pipeline for target in meant}
    if len(named) > 1 or "" in named:
        names = ", ".join(target.name for target in meant)
        raise UsageError(f"{names}: no default pipeline that all of them have.", "Name a pair with --pair.")
    return named.pop()


def _refuse_misplaced(context: typer.Context) -> None:
    """Options before a command would be read and forgotten."""
    given = [name for name in context.params if context.get_parameter_source(name).name != "DEFAULT"]  # type: ignore[union-attr]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        verb = context.invoked_subcommand
        raise UsageError(f"{option} stands before '{verb}'.", f"Options of a command come after it: {verb} {option}")
