"""Folders and JSON files that are either whole or not there."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import AcdcExportError, OutputError

T = TypeVar("T")

Upgrades = Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]
"""How older records are read: by schema version, what makes the next version's content of that one's."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h


def is_name(text: str) -> bool:
    """Whether `text` can be the name of a folder or file, and nothing else: no separator, no way upwards."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) is not None


@dataclass(frozen=True)
class Fingerprint:
    """What tells a file from every other, and a truncated one from an altered one."""

    sha256: str
    bytes: int


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprints(folder: Path) -> dict[str, Fingerprint]:
    """`{relative path: fingerprint}` of every file under `folder`, sorted by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): Fingerprint(sha256(path), path.stat().st_size) for path in files}


def folder_sha256(folder: Path) -> str:
    """One hash for all files of a folder and their names; what Python caches beside its sources is left out."""
    prints = {name: record.sha256 for name, record in fingerprints(folder).items() if "__pycache__" not in name}
    return hashlib.sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()


def damage(folder: Path, expected: dict[str, Fingerprint]) -> list[str]:
    """What differs between the files of `folder` and their recorded fingerprints, one line each."""
    found = []
    for name, record in expected.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            found.append(f"{name} points outside the folder")
        elif not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != record.bytes:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {record.bytes}")
        else:
            try:
                if sha256(path) != record.sha256:
                    found.append(f"{name} was altered (its SHA-256 differs)")
            except OSError as error:
                found.append(f"{name} can't be read ({error.strerror})")
    return found


def read_record(
    path: Path,
    kind: type[T],
    version: int,
    error: type[AcdcExportError],
    remedy: str,
    ignore: Sequence[str] = (),
    upgrades: Upgrades | None = None,
) -> T:
    """The dataclass `kind` from a JSON file that also holds a `schema_version`, and perhaps the keys `ignore`.

    An older version is read where `upgrades` lead from it to `version`, one step after the other.

    Raises:
        error: not JSON, another schema version, or fields that are not `kind`'s.
    """
    from pydantic import TypeAdapter, ValidationError

    damaged = error(f"{path} is not what its name says: it is cut off, or holds something else.", remedy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = content.pop("schema_version")
    except OSError as cause:
        raise error(f"{path} can't be read: {cause.strerror}.", "Check its permissions.") from cause
    except (ValueError, KeyError, AttributeError, TypeError) as cause:
        raise damaged from cause
    readable = [*sorted(upgrades or ()), version]
    if written not in readable:
        newer = isinstance(written, int) and written > version
        raise error(
            f"{path} has schema version {written}; this release reads {' and '.join(map(str, readable))}.",
            "Update acdc-export." if newer else remedy,
        )
    try:
        for step in range(written, version):
            content = (upgrades or {})[step](content)
    except (ValueError, KeyError, AttributeError, TypeError) as cause:  # it is not even of that version
        raise damaged from cause
    content = {key: value for key, value in content.items() if key not in ignore}
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise error(f"{path}: {where}: {first['msg']}.", remedy) from cause


def renamed(content: dict[str, Any], **names: str) -> dict[str, Any]:
    """The same content with other keys, in the same order: `names` are new by old. For `Upgrades`."""
    return {names.get(key, key): value for key, value in content.items()}


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON that ends with a newline. NaN is refused: JSON has none."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def new_folder(path: Path, marker: str, elsewhere: str = "with --out") -> Iterator[Path]:
    """A folder that appears at `path` only when the block ends well, in one step.

    Yields a temporary sibling to fill. An existing folder is replaced (exchanged atomically where the file
    system can) if it is ours, which the file `marker` in it shows, or empty; a foreign one is refused before
    anything is done. Whatever goes wrong inside the block, what was at `path` stays as it was. `elsewhere` says
    how a user chooses another place.

    Raises:
        OutputError: a foreign folder, no permission, a full disk.
    """
    path = path.absolute()
    temporary = _claim(path, marker, elsewhere)
    try:
        with output_errors(path, elsewhere):
            yield temporary
            if path.exists():
                _exchange(temporary, path)
            else:
                temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch(path: Path, elsewhere: str = "with --out") -> Iterator[Path]:
    """A temporary folder beside `path`, gone when the block ends; one that a killed run left is removed.

    Raises:
        OutputError: no permission, a full disk.
    """
    path = path.absolute().with_name(f"{path.name}.scratch")
    temporary = _claim(path, "", elsewhere)
    try:
        with output_errors(path, elsewhere):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_place(path: Path, marker: str, elsewhere: str = "with --out") -> None:
    """What `new_folder` would refuse, found out before the work whose results it is for. Raises `OutputError`."""
    _claim(path.absolute(), marker, elsewhere).rmdir()


def _claim(path: Path, marker: str, elsewhere: str) -> Path:
    """The new, empty, temporary sibling of `path`."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with output_errors(path, elsewhere):
        if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / marker).is_file())):
            raise OutputError(
                f"{path} exists and is not a folder of ours (it holds no {marker}).",
                f"Choose another place {elsewhere}, or move that folder away.",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary.mkdir()
    return temporary


def check_file(path: Path, elsewhere: str) -> None:
    """Ensure that a file can be written there, before the work that it is to hold. Raises `OutputError`."""
    with output_errors(path, elsewhere):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise NotADirectoryError(errno.EEXIST, f"'{path}' is a folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "it can't be written", str(path))


@contextmanager
def output_errors(path: Path, elsewhere: str = "with --out") -> Iterator[None]:
    """Turn what the system says about a place that can't be written into an `OutputError`.

    `elsewhere` says how a user chooses another place.
    """
    space = f"Free some space, or choose another disk {elsewhere}; what was there before is untouched."
    permission = f"Choose another place {elsewhere}, or change its permissions."
    part = f"Choose another place {elsewhere}: a part of that path is a file."
    remedies = {
        errno.ENOSPC: space,
        errno.EDQUOT: space,
        errno.EACCES: permission,
        errno.EPERM: permission,
        errno.EROFS: f"Choose another place {elsewhere}: that file system is read-only.",
        errno.EEXIST: part,
        errno.ENOENT: f"Choose another place {elsewhere}: nothing can be made there.",
        errno.ENOTDIR: part,
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies:
            raise
        raise OutputError(f"Can't write {error.filename or path}: {error.strerror}.", remedies[error.errno]) from error


def _exchange(ours: Path, theirs: Path) -> None:
    """Swap two folders so that neither name is ever without one (renameat2 with RENAME_EXCHANGE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    swapped = renameat2 is not None and not renameat2(
        _AT_FDCWD, os.fsencode(ours), _AT_FDCWD, os.fsencode(theirs), _RENAME_EXCHANGE
    )
    if not swapped:  # a file system without it (some network ones): as near as two renames come
        aside = theirs.with_name(f".{theirs.name}.old-{os.getpid()}")
        theirs.rename(aside)
        ours.rename(theirs)
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what a killed run of ours left beside `path`."""
    for left in path.parent.glob(f".{path.name}.tmp-*"):
        owner = left.name.rpartition("-")[2]
        if owner.isdigit() and int(owner) != os.getpid() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):
        shutil.rmtree(path.with_name(f".{path.name}.tmp-{os.getpid()}"))
