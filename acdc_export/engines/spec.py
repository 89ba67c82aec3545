"""What an environment is made from: what the target asks for today, or the very versions that a bundle has locked."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass

from ..config import Target
from ..errors import UsageError

_NAME = re.compile(r"[A-Z0-9]([A-Z0-9._-]*[A-Z0-9])?", re.IGNORECASE | re.ASCII)
_VERSION = re.compile(
    r"([0-9]+!)?[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?(\.dev[0-9]+)?(\+[a-z0-9]+([._-][a-z0-9]+)*)?",
    re.IGNORECASE | re.ASCII,
)
"""As pip lists them, and no more: options, addresses, ranges and markers do not match."""

_SOURCE = re.compile(r"\s*(-i|-f|--index-url|--extra-index-url|--no-index|--find-links|--trusted-host)\b")
"""A line of a requirements file that says where packages come from."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """What an environment is made from."""

    target: Target
    title: str  # in messages
    requirements: str  # the text of a requirements file
    options: tuple[str, ...] = ()  # of `pip install`
    locked: dict[str, str] | None = None  # versions by distribution that come of it; None leaves them to pip

    def folder_name(self, minor: int) -> str:
        """The environment's, with Python 3.`minor`. It changes with whatever would make it another one."""
        made_from = "\n".join([self.requirements, *self.options, f"3.{minor} {platform.machine()}"])
        return f"{self.target.runtime.name}-{hashlib.sha256(made_from.encode()).hexdigest()[:10]}"

    def differences(self, listed: dict[str, str]) -> list[str]:
        """What pip lists other than it was locked, a phrase for each distribution."""
        if self.locked is None:
            return []
        locked, installed = _by_name(self.locked), _by_name(listed)
        phrases = []
        for name in sorted({*locked, *installed}):
            if name not in installed:
                phrases.append(f"{name} {locked[name]} is missing")
            elif name not in locked:
                phrases.append(f"{name} {installed[name]} is there as well")
            elif installed[name] != locked[name]:
                phrases.append(f"{name} is {installed[name]} and not {locked[name]}")
        return phrases


def ordinary(target: Target) -> EnvironmentSpec:
    """What the target's requirements.txt leads to today."""
    return EnvironmentSpec(target, target.runtime.name, target.requirements.read_text(encoding="utf-8"))


def exact(target: Target, locked: dict[str, str]) -> EnvironmentSpec:
    """The versions in `locked`, from where the target's requirements.txt has its own.

    Raises:
        UsageError: something in `locked` is no version of a distribution. It was read from a file, and pip would
            take it for whatever else it looks like.
    """
    _check_plain(target, locked)
    # All of these, and no line that asks for a package: those are pinned.
    sources = [line for line in ordinary(target).requirements.splitlines() if _SOURCE.match(line)]
    pins = sorted(f"{name}=={version}" for name, version in locked.items())
    return EnvironmentSpec(
        target,
        f"{target.runtime.name} as it was locked",
        "\n".join([*sources, *pins, ""]),
        # The target's folder is where pip works: a wheel in it, ./my.whl, is listed by its name like any other.
        ("--no-deps", "--find-links", "."),
        locked,
    )


def _check_plain(target: Target, locked: dict[str, str]) -> None:
    odd = [
        f"{name} {version}"
        for name, version in locked.items()
        if not (_NAME.fullmatch(name) and _VERSION.fullmatch(version))
    ]
    problem = ""
    if odd:
        problem = f"{odd[0][:80]!r} is no version of a distribution"
    elif not locked:
        problem = "there are none"
    elif len(_by_name(locked)) < len(locked):
        problem = "a distribution is named twice"
    if problem:
        raise UsageError(
            f"{target.runtime.name} can't be installed in the versions that the bundle records: {problem}.",
            "The bundle's report was damaged or altered; take the bundle as it was exported.",
        )


def _by_name(versions: dict[str, str]) -> dict[str, str]:
    """With names as indexes compare them: PyYAML is pyyaml, typing_extensions is typing-extensions."""
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in versions.items()}
