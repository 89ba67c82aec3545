"""`acdc-export verify`: is a bundle whole, and does it still work on this machine?"""

from __future__ import annotations

from typing import Any

from ..options import BundleOptions
from .output import Output
from .parsing import BundleFolder, command


@command(BundleOptions)
def verify(bundle: BundleFolder, output: Output, **options: Any) -> int:
    """Check a bundle on this machine: its files, and its golden outputs in its runtime.

    \b
      acdc-export verify bundles/mine-cpu
      acdc-export verify bundles/mine-mybox --target ./targets/mybox
      acdc-export verify bundles/mine-native --trust bundles/mine-native

    Exit codes as for an export.
    """
    from .. import workflow

    verification = workflow.verify(bundle, **options, **output.dialog)
    output.show(verification)
    return verification.exit_code
