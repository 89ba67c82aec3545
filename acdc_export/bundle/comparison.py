"""The folder that a comparison is kept in, beside the bundles that it compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import files, present
from ..records import to_json
from ..records.comparison import Comparison

MARKER = "comparison.json"


def write(path: Path, comparison: Comparison, samples: dict[str, NDArray[Any]]) -> None:
    """Write the folder of a comparison, in place of an older one: JSON, samples.npz, Markdown and its picture.

    Raises:
        OutputError: it can't be written; what was there stays.
    """
    with files.new_folder(path, MARKER) as folder:
        files.write_json(folder / MARKER, to_json(comparison))
        np.savez_compressed(folder / "samples.npz", **samples)  # type: ignore[arg-type]
        present.write_markdown(folder / "comparison.md", comparison)
