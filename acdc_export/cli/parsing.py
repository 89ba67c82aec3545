"""A command's options, made from the class that holds them: flag, type, default and help are written there once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ForwardRef, get_args, get_origin

import typer

from ..keywords import Converted, Described, Many, described
from .output import Output

PipelineName = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="A name from `pipelines list`, or a TOML file of your own.")
]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]

_FLAGS = {
    "json": typer.Option(False, "--json", help="Print the result as JSON, and nothing else, on standard output."),
    "quiet": typer.Option(False, "--quiet", "-q", help="No progress; only the result, or the error."),
}


def command(
    options: type | None = None, *, flags: tuple[str, ...] = ("json", "quiet")
) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Make a function a command: `def verb(ARGUMENT, output, **options)`, which returns its exit code or None.

    Its own parameters are annotated as typer wants them; `--help` shows them before the options, or after them where
    they stand after `output`. The function gets the options of the class by their names there, those that repeat only
    if they were given. `output` prints as the `flags` say.
    """

    described_options = described(options).values() if options else ()
    names = {_flag_name(entry).replace("-", "_"): entry for entry in described_options if entry.option.cli}

    def decorate(function: Callable[..., int | None]) -> Callable[..., None]:
        @wraps(function)
        def call(**given: Any) -> None:
            output = Output(**{flag: given.pop(flag) for flag in flags})
            keywords = {entry.name: value for name, entry in names.items() if _is_given(value := given.pop(name))}
            with output.guard():
                code = function(**given, **keywords, output=output)
            if code is not None:
                raise typer.Exit(code)

        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.kind != inspect.Parameter.VAR_KEYWORD
        ]
        place = [parameter.name for parameter in parameters].index("output")
        parameters[place : place + 1] = [
            _parameter(name, _parsed(entry.type), flag(entry)) for name, entry in names.items()
        ]
        parameters += [_parameter(name, bool, _FLAGS[name]) for name in flags]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def flag(entry: Described) -> Any:
    """An option as the default value of a typer command's parameter."""
    option, name = entry.option, _flag_name(entry)
    return typer.Option(
        None if entry.repeats else entry.default,
        f"--{name}/--no-{name}" if entry.default is True else f"--{name}",
        help=f"{option.meaning} May be repeated." if entry.repeats else option.meaning,
        metavar=option.metavar,
        min=option.minimum,
    )


def as_path(path: Path) -> str:
    """A path as an option takes it: never to be mistaken for a built-in's name."""
    return str(path) if "/" in str(path) else f"./{path}"


def _flag_name(entry: Described) -> str:
    """The name of an option on the command line, without the hyphens in front of it."""
    return entry.option.flag.removeprefix("--") or entry.name.replace("_", "-")


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parsed(kind: Any) -> Any:
    """What typer makes of an option's text: its type; a string for what has other forms only in Python."""
    if isinstance(kind, ForwardRef):
        return str | None
    if get_origin(kind) is Many:
        (item,) = get_args(kind)
        return list[str if isinstance(item, ForwardRef) else item] | None  # type: ignore[misc]
    if get_origin(kind) is Converted:
        return _parsed(get_args(kind)[1])
    return kind


def _is_given(value: Any) -> bool:
    """Whether there is something to pass on. An option that repeats is None or empty where nobody named it."""
    return value is not None and value != []
