"""`acdc-export pipelines`: the pipelines that there are, and a start for one of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError, RuntimeUnavailable
from .output import Output
from .parsing import PipelineName, as_path, command

HELP = """List, show, copy and check train-then-deploy pipelines.

\b
  acdc-export pipelines list
  acdc-export pipelines copy digits mine.toml    a start for your own
  acdc-export pipelines check mine.toml          are there mistakes in it?
"""

app = typer.Typer(help=HELP, no_args_is_help=True)


@app.command("list")
@command(flags=("json",))
def list_pipelines(output: Output) -> None:
    """The built-in pipelines."""
    from .. import resources
    from ..config import load_pipeline

    pipelines = [load_pipeline(name) for name in resources.names("pipelines")]
    output.rows(
        ("name", "targets", "description"),
        [(pipeline.name, ", ".join(pipeline.judging.targets), pipeline.description) for pipeline in pipelines],
    )


@app.command()
@command(flags=())
def show(name: PipelineName, output: Output) -> None:
    """Print a pipeline's TOML."""
    from .. import resources

    output.text(resources.find("pipelines", name).read_text(encoding="utf-8"), newline=False)


@app.command()
@command(flags=())
def copy(
    name: PipelineName, to: Annotated[Path, typer.Argument(metavar="TO", help="The new file.")], output: Output
) -> None:
    """Copy a built-in pipeline's file, as a start for one of your own."""
    from .. import resources

    resources.copy("pipelines", name, to)
    output.text(f"Copied the pipeline {name} to {to}. Use it with: acdc-export run {as_path(to)}")


@app.command()
@command(flags=())
def check(name: PipelineName, output: Output) -> None:
    """Check a pipeline's file, and build its network, without reading data or training anything."""
    from .. import training
    from ..config import load_pipeline

    pipeline = load_pipeline(name)
    try:
        problems = training.problems(pipeline)
    except RuntimeUnavailable as error:
        output.text(f"{pipeline.name}: no mistakes found in the file.\nIts network was not built. {error}")
        return
    if problems:
        raise ConfigError(name, problems)
    output.text(f"{pipeline.name}: no mistakes found.")
