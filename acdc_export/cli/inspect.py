"""`acdc-export inspect`: where are the zeros of whatever holds weights?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .output import Output
from .parsing import command

if TYPE_CHECKING:
    from ..inspection import Training


@command(flags=("json",))
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An ONNX file, a pair, a bundle, or a .safetensors checkpoint.")
    ],
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Write a picture of the run: phases and accuracy.")
    ] = None,
    *,
    output: Output,
) -> None:
    """Count zeros, 2:4 groups and 1x4 blocks, layer by layer; of a pair or bundle, also how it was trained.

    \b
      acdc-export inspect model.onnx
      acdc-export inspect runs/mine --picture run.svg
    """
    from .. import inspection

    parts, training = inspection.inspect(path), inspection.training(path)
    if picture is not None:
        _draw(picture, path, training)
    output.show_inspection(parts, training)


def _draw(picture: Path, path: Path, training: Training | None) -> None:
    from ..files import output_errors
    from ..present.run_picture import svg

    if training is None:
        raise UsageError(f"{path} doesn't say how it was trained.", "Give the folder of a pair or a bundle.")
    with output_errors(picture, "with --picture"):
        picture.write_text(svg(training.history, training.name), encoding="utf-8")
