"""`acdc-export targets`: the deployment targets that there are, and a start for one of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import EngineOptions
from .output import Output
from .parsing import as_path, command

HELP = """List, show, copy, check and install deployment targets.

\b
  acdc-export targets list                        which can run here?
  acdc-export targets copy cpu ./targets/mybox    a start for your own
  acdc-export targets check ./targets/mybox       are its files right?
"""

app = typer.Typer(help=HELP, no_args_is_help=True)

TargetName = Annotated[str, typer.Argument(metavar="NAME", help="A name from `targets list`, or a folder of your own.")]


@app.command("list")
@command(flags=("json",))
def list_targets(output: Output) -> None:
    """The built-in targets, and whether each can run here."""
    from .. import engines, resources
    from ..config import load_target

    targets = [load_target(name) for name in resources.names("targets")]
    states = [engines.status(target) for target in targets]
    output.rows(
        ("name", "state", "description", "detail"),
        [
            (target.name, state.state, target.description, state.detail)
            for target, state in zip(targets, states, strict=True)
        ],
    )


@app.command()
@command(flags=())
def show(name: TargetName, output: Output) -> None:
    """Print a target's target.toml."""
    from .. import resources

    output.text((resources.find("targets", name) / "target.toml").read_text(encoding="utf-8"), newline=False)


@app.command()
@command(flags=())
def copy(
    name: TargetName, to: Annotated[Path, typer.Argument(metavar="TO", help="The new folder.")], output: Output
) -> None:
    """Copy a built-in target's folder, as a start for one of your own."""
    from .. import resources

    resources.copy("targets", name, to)
    output.text(f"Copied the target {name} to {to}. Use it with --target {as_path(to)}")


@app.command()
@command(flags=())
def check(name: TargetName, output: Output) -> None:
    """Check a target's files without running anything."""
    from ..config import load_target

    output.text(f"{load_target(name).name}: no mistakes found.")


@app.command()
@command(EngineOptions, flags=("quiet",))
def install(name: TargetName, output: Output, **options: Any) -> None:
    """Create the environment of a target, which is otherwise done on first use."""
    from ..config import load_target

    target = load_target(name)
    output.text(f"{target.name} is ready: {EngineOptions(**options, **output.dialog).ensure(target).python}")
