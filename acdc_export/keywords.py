"""Options as the fields of a frozen dataclass: a Python function takes them as keywords, a command as flags.

Each is written once, with its type, its default and its meaning:

    @dataclass(frozen=True, kw_only=True)
    class ExportOptions:
        gates: Annotated[Many[str], Option("What to judge by.", flag="--gate", metavar="GATE")] = Many()

Type checkers see what `takes` makes of it. The annotations must be objects, so the module of such a class does without
`from __future__ import annotations`. A type that is heavy to import stands in quotes.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache, wraps
from typing import Annotated, Any, Concatenate, ForwardRef, Generic, ParamSpec, TypeVar, cast, get_args, get_origin

from .errors import UsageError, nearest

Given = TypeVar("Given")
Kept = TypeVar("Kept")
Item = TypeVar("Item")
First = TypeVar("First")
Result = TypeVar("Result")
Options = TypeVar("Options")
Keywords = ParamSpec("Keywords")


@dataclass(frozen=True, eq=False)
class Option:
    """What is to be said of an option beside its type and its default.

    Attributes:
        meaning: shown by `help()` and by `--help` alike. So it names units, but neither keywords nor flags.
        flag: its name on the command line, where that differs from the field's.
        metavar: what stands for its value in `--help`.
        minimum: the least number that the command line takes.
        cli: whether the command line has it. Some things can only be passed in Python.
        python: what `help()` adds to the meaning.
    """

    meaning: str
    flag: str = ""
    metavar: str | None = None
    minimum: int | None = None
    cli: bool = True
    python: str = ""


class Converted(Generic[Given, Kept]):
    """A field that takes a value in any form that a user may have it in, and holds it in one.

    This is what the documentation of dataclasses calls a descriptor-typed field. Type checkers take the type that
    `__set__` accepts for the parameter, and the type that `__get__` returns for the attribute.
    """

    def __init__(self, convert: Callable[[Given], Kept], default: Given) -> None:
        self._convert = convert
        self._default = convert(default)

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object | None, owner: type) -> Kept:
        return self._default if instance is None else cast(Kept, instance.__dict__[self._name])

    def __set__(self, instance: object, value: Given) -> None:
        instance.__dict__[self._name] = self._convert(value)


class Many(Converted[Item | Iterable[Item] | None, tuple[Item, ...]]):
    """A field that takes one item, several, or None for none, and holds a tuple."""

    def __init__(self, default: Iterable[Item] = ()) -> None:
        super().__init__(_as_tuple, default)


def _as_tuple(value: Item | Iterable[Item] | None) -> tuple[Item, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (value,)
    return tuple(value)


@dataclass(frozen=True, eq=False)
class Described:
    """An option of a class, as it was written there. `type` is its annotation, for instance `Many[int]`."""

    name: str
    type: Any
    default: Any
    option: Option
    keyword_only: bool

    @property
    def repeats(self) -> bool:
        """Whether it takes several values."""
        return get_origin(self.type) is Many


@cache
def described(options: type) -> dict[str, Described]:
    """The options of a class by name: its own first, then those that it shares with others."""
    every: dict[str, Field[Any]] = {field.name: field for field in fields(options)}
    own_first = dict.fromkeys(
        name for owner in options.__mro__ for name in inspect.get_annotations(owner) if name in every
    )
    return {name: _described(every[name]) for name in own_first}


def _described(field: Field[Any]) -> Described:
    if get_origin(field.type) is not Annotated:
        raise TypeError(f"{field.name} is not annotated as Annotated[TYPE, Option(...)].")
    kind, option = get_args(field.type)
    if field.default is MISSING:
        raise TypeError(f"{field.name} has no default: what has to be given is an argument, and no option.")
    return Described(field.name, kind, field.default, option, bool(field.kw_only))


def takes(
    options: Callable[Keywords, Options],
) -> Callable[[Callable[[First, Options], Result]], Callable[Concatenate[First, Keywords], Result]]:
    """Let a function of a thing and its options take the options as keywords: `export(pair, gates=["..."])`.

    Its signature and docstring list them. One that does not exist is a `UsageError` with the nearest name.
    """
    kind = cast(type, options)

    def decorate(function: Callable[[First, Options], Result]) -> Callable[Concatenate[First, Keywords], Result]:
        name = function.__name__
        first, _ = inspect.signature(function).parameters.values()
        signature = inspect.Signature(
            [first, *_parameters(kind)], return_annotation=inspect.signature(function).return_annotation
        )

        @wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Result:
            if message := misspelt(name, [word for word in keywords if word != first.name], kind):
                raise UsageError(message, f"Its options are {', '.join(described(kind))}.")
            try:
                given = signature.bind(*arguments, **keywords).arguments
            except TypeError as error:
                raise TypeError(f"{name}(): {error}") from None
            return function(given.pop(first.name), options(**given))  # type: ignore[call-arg]

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = _with_options(inspect.getdoc(function) or "", kind)
        return call

    return decorate


def misspelt(where: str, names: Iterable[str], options: type) -> str:
    """What is wrong with the first of `names` that is no option of a class; empty if all are."""
    known = list(described(options))
    return next((f"{where} has no option '{name}'{nearest(name, known)}." for name in names if name not in known), "")


def _parameters(options: type) -> list[inspect.Parameter]:
    """The options as parameters of a function, positional ones first."""
    return [
        inspect.Parameter(
            entry.name,
            inspect.Parameter.KEYWORD_ONLY if entry.keyword_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=entry.default,
            annotation=_text(entry.type),
        )
        for entry in sorted(described(options).values(), key=lambda entry: entry.keyword_only)
    ]


def _text(kind: Any) -> str:
    """A type as `help` shows it: what may be given."""
    if isinstance(kind, ForwardRef):
        return kind.__forward_arg__
    if get_origin(kind) is Many:
        (item,) = get_args(kind)
        return f"{_text(item)} | Iterable[{_text(item)}]"
    if get_origin(kind) is Converted:
        return _text(get_args(kind)[0])
    return re.sub(r"[\w.]+\.(\w+)", r"\1", inspect.formatannotation(kind))


def _with_options(text: str, options: type) -> str:
    """A docstring with a section for its options, before what it says of results and errors."""
    head, section, rest = text, "", ""
    for title in ("Returns:", "Raises:"):
        if f"\n{title}\n" in text:
            head, section, rest = text.partition(f"\n{title}\n")
            break
    lines = [
        textwrap.fill(
            f"{entry.name}: {entry.option.meaning} {entry.option.python}".rstrip(),
            width=110,
            initial_indent="    ",
            subsequent_indent="        ",
            break_on_hyphens=False,
        )
        for entry in described(options).values()
    ]
    return "\n".join([f"{head.rstrip()}\n\nOptions:", *lines, *([section + rest] if section else [])])
