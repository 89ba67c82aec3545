"""Licenses that a user must accept before a runtime is installed or used. The user is asked once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..config import Target
from ..errors import RuntimeUnavailable
from ..files import write_json
from .home import home

VARIABLE = "ACDC_EXPORT_ACCEPT_LICENSE"
"""This variable accepts licenses where there is no terminal: names of runtimes, separated by commas."""


def require(target: Target, accepted: frozenset[str], ask: Callable[[str], bool] | None) -> None:
    """Ensure that the license of the target's runtime is accepted, or needs no acceptance.

    Args:
        accepted: names of runtimes accepted on the command line.
        ask: shows a notice of several lines and returns the answer; None where nobody can be asked.

    Raises:
        RuntimeUnavailable: the license is not accepted. The remedy names the option that accepts it.
    """
    if not target.license.accept or _is_remembered(target):
        return
    name, terms = target.runtime.name, target.license
    runtimes = (accepted | _by_variable()) - {""}
    if name not in runtimes and not (ask is not None and ask(notice(target))):
        instead = f"; accepted was {', '.join(sorted(runtimes))}" if runtimes else ""
        raise RuntimeUnavailable(
            f"{name} comes under the {terms.name} ({terms.url}), which has not been accepted{instead}.",
            f"Read it; to accept it, repeat the command with --accept-license {name}, or set {VARIABLE}={name}.",
        )
    _remember(target)


def is_accepted(target: Target) -> bool:
    """Whether `require` would return without an option or a question."""
    accepted = _is_remembered(target) or target.runtime.name in _by_variable()
    return accepted or not target.license.accept


def notice(target: Target) -> str:
    """The text that a user reads before the question."""
    return f"{target.license.notice}\n{target.license.name}: {target.license.url}".strip()


def _by_variable() -> set[str]:
    return {name.strip() for name in os.environ.get(VARIABLE, "").split(",")}


def _is_remembered(target: Target) -> bool:
    """Whether exactly this license was accepted before, for the target's runtime."""
    record = _read().get(target.runtime.name)
    return isinstance(record, dict) and (record.get("license"), record.get("url")) == _identity(target)


def _identity(target: Target) -> tuple[str, str]:
    return target.license.name, target.license.url


def _file() -> Path:
    return home() / "licenses.json"


def _read() -> dict[str, Any]:
    """The records of accepted licenses, by runtime. If the file can't be read, the user is asked again."""
    try:
        records = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}


def _remember(target: Target) -> None:
    name, url = _identity(target)
    today = datetime.now(UTC).date().isoformat()
    records = {**_read(), target.runtime.name: {"license": name, "url": url, "accepted": today}}
    # An administrator may have prepared a home that can't be written: the license is accepted all the same.
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        temporary = _file().with_name(f".licenses.json.tmp-{os.getpid()}")
        try:
            write_json(temporary, records)
            temporary.replace(_file())
        finally:
            temporary.unlink(missing_ok=True)
