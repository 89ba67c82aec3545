"""Folders and JSON files that are either complete or absent."""

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

from .errors import AcdcExportError, OutputError, UsageError

T = TypeVar("T")

Upgrades = Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]
"""How older records are read: by schema version, what makes the next version's content of that one's."""

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h


def is_name(text: str) -> bool:
    """Whether `text` is a plain name of a folder or file, without separators or a way upwards."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) is not None


def expanded(path: Path, remedy: str) -> Path:
    """The path with its `~` or `~user` expanded.

    Raises:
        UsageError: it is not known: HOME is not set and this user has no entry in passwd, or `user` has none.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        whose = (
            "HOME is not set and this user has no entry in passwd" if path.parts[0] == "~" else "no such user is here"
        )
        raise UsageError(f"{path}: the home folder {path.parts[0]} is not known: {whose}.", remedy) from None


@dataclass(frozen=True)
class Fingerprint:
    """Identifies the content of a file. The size tells a truncated file from an altered one."""

    sha256: str
    bytes: int


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprints(folder: Path) -> dict[str, Fingerprint]:
    """Return `{relative path: fingerprint}` of every file under `folder`, sorted by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): Fingerprint(sha256(path), path.stat().st_size) for path in files}


def folder_sha256(folder: Path) -> str:
    """Return one hash for all files of a folder and their names. Python's caches are left out."""
    hashes = {name: record.sha256 for name, record in fingerprints(folder).items() if "__pycache__" not in name}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def damage(folder: Path, expected: dict[str, Fingerprint]) -> list[str]:
    """List the differences between the files of `folder` and their recorded fingerprints, one line each."""
    problems = []
    for name, record in expected.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            problems.append(f"{name} points outside the folder")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != record.bytes:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {record.bytes}")
        else:
            try:
                if sha256(path) != record.sha256:
                    problems.append(f"{name} was altered (its SHA-256 differs)")
            except OSError as error:
                problems.append(f"{name} can't be read ({error.strerror})")
    return problems


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
    """Yield a temporary folder to fill. It appears at `path` in one step, and only if the block ends without an error.

    An existing folder is replaced if it is empty or ours, which the file `marker` in it shows. It is exchanged
    atomically where the file system can. A foreign folder is refused before anything is written. If the block fails,
    whatever was at `path` stays as it was. `elsewhere` tells a user how to choose another place.

    Raises:
        OutputError: the folder is foreign, there is no permission, or the disk is full.
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
    """Yield a temporary folder beside `path`, and remove it when the block ends. One of a killed run is removed too.

    Raises:
        OutputError: there is no permission, or the disk is full.
    """
    path = path.absolute().with_name(f"{path.name}.scratch")
    temporary = _claim(path, "", elsewhere)
    try:
        with output_errors(path, elsewhere):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_place(path: Path, marker: str, elsewhere: str = "with --out") -> None:
    """Refuse what `new_folder` would refuse, before the work is done. Raises `OutputError`."""
    _claim(path.absolute(), marker, elsewhere).rmdir()


def _claim(path: Path, marker: str, elsewhere: str) -> Path:
    """Make the empty temporary sibling of `path`. Raises `OutputError`."""
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
    """Ensure that the file `path` can be written, before the work is done. Raises `OutputError`."""
    with output_errors(path, elsewhere):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise NotADirectoryError(errno.EEXIST, f"'{path}' is a folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "it can't be written", str(path))


@contextmanager
def output_errors(path: Path, elsewhere: str = "with --out") -> Iterator[None]:
    """Turn the system's errors about a place that can't be written into an `OutputError`.

    `elsewhere` tells a user how to choose another place.
    """
    space = f"Free some space, or choose another disk {elsewhere}; what was there before is untouched."
    permission = f"Choose another place {elsewhere}, or change its permissions."
    not_a_folder = f"Choose another place {elsewhere}: a part of that path is a file."
    remedies = {
        errno.ENOSPC: space,
        errno.EDQUOT: space,
        errno.EACCES: permission,
        errno.EPERM: permission,
        errno.EROFS: f"Choose another place {elsewhere}: that file system is read-only.",
        errno.EEXIST: not_a_folder,
        errno.ENOENT: f"Choose another place {elsewhere}: nothing can be made there.",
        errno.ENOTDIR: not_a_folder,
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies:
            raise
        raise OutputError(f"Can't write {error.filename or path}: {error.strerror}.", remedies[error.errno]) from error


def _exchange(ours: Path, theirs: Path) -> None:
    """Swap two folders; both names exist at every moment (renameat2 with RENAME_EXCHANGE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    swapped = renameat2 is not None and not renameat2(
        _AT_FDCWD, os.fsencode(ours), _AT_FDCWD, os.fsencode(theirs), _RENAME_EXCHANGE
    )
    if not swapped:  # some network file systems can't: two renames come nearest
        aside = theirs.with_name(f".{theirs.name}.old-{os.getpid()}")
        theirs.rename(aside)
        ours.rename(theirs)
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove temporary folders that killed runs left beside `path`."""
    for folder in path.parent.glob(f".{path.name}.tmp-*"):
        owner = folder.name.rpartition("-")[2]
        if owner.isdigit() and int(owner) != os.getpid() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        shutil.rmtree(path.with_name(f".{path.name}.tmp-{os.getpid()}"))
