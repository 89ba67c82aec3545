"""The command: one file a verb. It parses, calls `workflow`, and prints.

A module NAME.py with a function NAME is the verb NAME; one with an `app` is a group of commands. They are found by
looking into this folder, so a new verb needs no entry here. Modules import nothing heavy until their command runs:
`--help` and a misspelt option answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command; `__main__` is the entry point."""
    app(prog_name="acdc-export")


def _add(name: str) -> None:
    module = import_module(f".{name}", __name__)
    verb = name.rstrip("_")  # a file may not have the name of a Python keyword
    function: Callable[..., None] | None = getattr(module, verb, None)
    if group := getattr(module, "app", None):
        app.add_typer(group, name=verb)
    elif function is not None and verb == "export":  # the command without a verb
        app.callback(invoke_without_command=True)(function)
    elif function is not None:
        app.command(verb)(function)


for _module in iter_modules(__path__):
    _add(_module.name)
