"""`acdc-export inspect`: where are the zeros of whatever holds weights?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .output import Output
from .parsing import command

if TYPE_CHECKING:
    from ..records.inspection import Training


@command(flags=("json",))
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An ONNX file, a pair, a bundle, or a .safetensors checkpoint.")
    ],
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Write a picture of the run: phases and accuracy.")
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="A pattern to count groups of, N:M or blockN: 4:8; may be given repeatedly."),
    ] = None,
    *,
    output: Output,
) -> None:
    """Count zeros, and groups of 2:4, block4 and other patterns, layer by layer; of a pair or bundle, also how it was
    trained.

    \b
      acdc-export inspect model.onnx
      acdc-export inspect model.onnx --pattern 4:8 --pattern block16
      acdc-export inspect runs/mine --picture run.svg
    """
    from .. import inspection

    contents = inspection.inspect(path, pattern or ())
    if picture is not None:
        _draw(picture, path, contents.training)
    output.show(contents)


def _draw(picture: Path, path: Path, training: Training | None) -> None:
    from .. import present
    from ..files import output_errors

    if training is None or training.history is None:
        raise UsageError(f"{path} doesn't say how it was trained.", "Give the folder of a pair or a bundle.")
    with output_errors(picture, "with --picture"):
        present.draw(picture, training)
