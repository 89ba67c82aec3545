"""`acdc-export check`: has a bundle become slower?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import CheckOptions
from .output import Output
from .parsing import command


@command(CheckOptions)
def check(
    bundle: Annotated[Path, typer.Argument(metavar="NEW", help="The new bundle's folder.")],
    output: Output,
    **options: Any,
) -> int:
    """Has a bundle become slower? It is measured in turns with an older one, on this machine: a gate for CI.

    \b
      acdc-export check bundles/new --against bundles/old     in turns
      acdc-export check bundles/new --save ci/cpu.json        store its ratios
      acdc-export check bundles/new --baseline ci/cpu.json    beside stored ratios

    Without --gate: 'latency.p50.ratio <= 1.03', a slowdown of 3 % is found; with --baseline 1.10. Store six
    checks of a bundle at different times: they tell how far the ratio moves by itself. Exit codes as for an export.
    """
    from .. import workflow

    finding = workflow.check(bundle, **options, **output.dialog)
    output.show(finding)
    return finding.exit_code
