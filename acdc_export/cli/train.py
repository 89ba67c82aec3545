"""`acdc-export train`: a pair from a pipeline."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..options import TrainOptions
from .output import Output
from .parsing import PipelineName, command


@command(TrainOptions)
def train(
    pipeline: PipelineName,
    output: Output,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take one step in each phase, export what comes of it, keep nothing.")
    ] = False,
    **options: Any,
) -> None:
    """Train a pair, sparse half and dense twin, and write it to RUNS/NAME.

    A run that was interrupted goes on where it was, from RUNS/NAME.checkpoint.

    \b
      acdc-export train digits                  writes runs/digits
      acdc-export train mine.toml --dry-run     does it work, how long is a step?
      acdc-export train mine.toml --anew        forget the interrupted run
    """
    from .. import workflow

    if dry_run:
        output.show(workflow.rehearse(pipeline, progress=output.progress))
        return
    pair = workflow.train(pipeline, **options, progress=output.progress)
    sparsity = pair.record.pattern.achieved
    output.result(
        {"pair": str(pair.path), "sparsity": sparsity, "metrics": pair.record.metrics},
        f"Wrote the pair {pair.path}: {100 * sparsity:.2f} % zeros in the pruned layers.",
    )
