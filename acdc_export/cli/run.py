"""`acdc-export run`: a pipeline from its start to its end."""

from __future__ import annotations

from typing import Any

from ..options import RunOptions
from .output import Output
from .parsing import PipelineName, command


@command(RunOptions)
def run(pipeline: PipelineName, output: Output, **options: Any) -> int:
    """Train a pipeline's pair (or reuse it), export it to the pipeline's targets, and judge it there.

    \b
      acdc-export run digits                          a built-in pipeline
      acdc-export run mine.toml --precision int8      your own, in int8
      acdc-export run mine.toml --target all          everywhere, side by side

    Exit codes as for an export.
    """
    from .. import workflow

    outcome = workflow.run(pipeline, **options, **output.dialog)
    output.show_outcome(outcome)
    return outcome.exit_code
