"""A runtime's own interpreter: created on first use, kept in the home folder, found again by what made it."""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import operator
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from ..config import HOST, Runtime, Target
from ..errors import RuntimeUnavailable, UsageError
from ..files import new_folder, output_errors, write_json
from ..progress import SILENT, Progress
from . import licenses, spec
from .home import home
from .spec import EnvironmentSpec

SCHEMA_VERSION = 1
RECORD = "environment.json"
"""Written last, so an environment that has it is whole."""

_PROBE = "import sys, ensurepip, venv; print('%d.%d' % sys.version_info[:2])"
_PROBE_SECONDS = 20.0
_COMPARE = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
_LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_WHERE_FROM = frozenset(
    [
        "index-url",
        "extra-index-url",
        "find-links",
        "no-index",
        "trusted-host",
        "keyring-provider",
        "cert",
        "client-cert",
        "proxy",
        "retries",
        "resume-retries",
        "timeout",
        "default-timeout",
        "cache-dir",
        "no-cache-dir",
    ]
)
"""The user's settings of pip that count, of its variables and of its files: where packages come from. All others would
change what is installed, or where: constraint, dry-run, no-deps, pre, target, user and those that pip will have."""

_OFFLINE = re.compile(
    r"from versions: none|connection broken|Max retries exceeded|Failed to establish|name resolution"
    r"|unreachable|timed out|ConnectTimeout|ReadTimeout|ProxyError|SSLError|IncompleteRead",
    re.IGNORECASE,
)
_BUILDING = "building"
_ELSEWHERE = "with ACDC_EXPORT_HOME"
_BASELINE = "compare with a stored baseline instead: `acdc-export check NEW --baseline FILE`."
"""What is left to whoever can't have the versions that a bundle has locked."""

_FULL = re.compile(r"\[Errno 28\]|No space left on device|\[Errno 122\]|Disk quota exceeded")


@dataclass(frozen=True)
class Environment:
    """An interpreter with a runtime in it. Only `python` is ever called, never a console script: those hold
    the path of the folder in which they were installed."""

    python: Path
    locked: dict[str, str]  # versions by distribution
    folder: Path
    ours: bool = True  # made by us, and not the interpreter that we run in
    imports: tuple[Path, ...] = ()  # folders that it imports from as well

    @property
    def repair(self) -> str:
        """What a user can do about an environment that doesn't work."""
        if self.ours:
            return f"Remove {self.folder} to have it installed anew, or choose another target."
        return f"Install what its engine.py imports beside acdc-export, for {self.python}."


@dataclass(frozen=True)
class Status:
    """Whether a target can run here, as far as one can tell without installing; `detail` is a phrase."""

    state: Literal["installed", "installable", "unavailable"]
    detail: str


def ensure(
    target: Target,
    *,
    accept_licenses: frozenset[str] = frozenset(),
    progress: Progress = SILENT,
    ask: Callable[[str], bool] | None = None,
    locked: dict[str, str] | None = None,
) -> Environment:
    """The environment of the target's runtime, installed if it isn't yet.

    Two processes may ask at once: one installs, the other waits. Whatever stops an installation, nothing of it
    is left that a later call would take for whole.

    Args:
        accept_licenses: names of runtimes whose licenses are accepted; see `licenses.require`.
        ask: shows a notice and returns whether its license is accepted; None where nobody can be asked.
        locked: versions by distribution that it has to hold, these and no others, as a bundle records them; None
            takes what the target's requirements.txt leads to. The host's own interpreter is taken as it is.

    Raises:
        RuntimeUnavailable: the wrong machine, no Python that it supports, a license that wasn't accepted, or
            an installation that failed (no network, most often) or came out other than `locked`.
        UsageError: something in `locked` is no version of a distribution.
        OutputError: the home folder can't be written, or the disk is full.
    """
    runtime = target.runtime
    _check_machine(runtime)
    if runtime.python == HOST:
        licenses.require(target, accept_licenses, ask)
        return host()
    asked = _spec(target, locked)
    environment = _find(asked)
    if environment is None:
        python, minor = _interpreter(runtime)  # before the license: nobody reads one for nothing
    licenses.require(target, accept_licenses, ask)
    if environment is not None:
        return environment
    folder = _folder(asked, minor)
    with _alone(folder, lambda: progress.say(f"Waiting for another process that installs {asked.title}.")):
        return _find(asked) or _build(asked, python, folder, progress)


def status(target: Target) -> Status:
    """What `ensure` would find, without installing or asking anything; takes well under a second."""
    try:
        _check_machine(target.runtime)
        if target.runtime.python == HOST:
            return Status("installed", "in the interpreter at hand")
        if environment := _find(spec.ordinary(target)):
            return Status("installed", f"in {environment.folder}")
        _interpreter(target.runtime)
    except RuntimeUnavailable as error:
        return Status("unavailable", error.message)
    except UsageError as error:  # there is no folder to put it in
        return Status("unavailable", f"{error.message} {error.remedy}")
    if not licenses.is_accepted(target):
        return Status("installable", f"on first use, with --accept-license {target.runtime.name}")
    return Status("installable", "on first use")


def host() -> Environment:
    """The interpreter that this runs in, for a target that needs nothing else. There is nothing to install or to lock:
    what it holds is recorded, so that a later check can tell what differs.

    It imports this package from where it runs now, which may be a PYTHONPATH that its processes don't get.
    """
    locked = {name: version(name) for name in ("numpy", "acdc-export") if _is_installed(name)}
    package = Path(__file__).absolute().parents[2]
    return Environment(Path(sys.executable), locked, Path(sys.prefix), ours=False, imports=(package,))


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:  # acdc-export on PYTHONPATH alone
        return False
    return True


def supported_minors(python: str) -> list[int]:
    """The 3.N that a specification such as ">=3.8,<3.12" allows: [8, 9, 10, 11]."""
    bounds = [
        (_COMPARE[sign], (int(major), int(minor)))
        for sign, major, minor in re.findall(r"(>=|<=|==|>|<)\s*(\d+)\.(\d+)", python)
    ]
    return [minor for minor in range(50) if all(compare((3, minor), bound) for compare, bound in bounds)]


def _check_machine(runtime: Runtime) -> None:
    if not sys.platform.startswith("linux") or platform.machine() not in runtime.machines:
        raise RuntimeUnavailable(
            f"{runtime.name} runs on Linux on {' or '.join(runtime.machines)}; "
            f"this is {platform.system()} on {platform.machine()}.",
            "Choose another target; `acdc-export targets list` shows those that run here.",
        )


def _preferred(runtime: Runtime) -> list[int]:
    """Supported minor versions of Python: our own first, since it is sure to be there, then the newest."""
    own = sys.version_info.minor
    return sorted(supported_minors(runtime.python), key=lambda minor: (minor != own, -minor))


def _spec(target: Target, locked: dict[str, str] | None) -> EnvironmentSpec:
    """What is to be installed. Versions that are locked need no environment of their own where the ordinary one,
    as it is installed, has them."""
    ordinary = spec.ordinary(target)
    if locked is None:
        return ordinary
    exact = spec.exact(target, locked)
    environment = _find(ordinary)
    return ordinary if environment is not None and not exact.differences(environment.locked) else exact


def _folder(asked: EnvironmentSpec, minor: int) -> Path:
    return home() / "environments" / asked.folder_name(minor)


def _find(asked: EnvironmentSpec) -> Environment | None:
    """The environment, if it is installed and whole."""
    candidates = (_read(_folder(asked, minor)) for minor in _preferred(asked.target.runtime))
    return next(
        (
            environment
            for environment in candidates
            if environment is not None and not asked.differences(environment.locked)
        ),
        None,
    )


def _read(folder: Path) -> Environment | None:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        python, locked = folder / "bin" / "python", dict(record["locked"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # bin/python is a link to the interpreter that made it, which may have been removed since.
    whole = record.get("schema_version") == SCHEMA_VERSION and python.exists()
    return Environment(python, locked, folder) if whole else None


def _interpreter(runtime: Runtime) -> tuple[Path, int]:
    """An interpreter that the runtime supports and that can make environments, and its minor version.

    Raises:
        RuntimeUnavailable: there is none; the message tells what was found instead.
    """
    own = Path(getattr(sys, "_base_executable", None) or sys.executable)
    rejected = []
    if sys.version_info.minor not in supported_minors(runtime.python):
        rejected.append(f"{own} is {sys.version_info.major}.{sys.version_info.minor}")
    for minor in _preferred(runtime):
        candidates = [own] if minor == sys.version_info.minor else []
        for candidate in (*candidates, *_on_path(f"python3.{minor}")):
            answer = _probe(str(candidate))
            if answer == f"is 3.{minor}":
                return candidate, minor
            rejected.append(f"{candidate} {answer}")
    listing = f" Found: {'; '.join(rejected)}." if rejected else ""
    versions = [f"3.{minor}" for minor in supported_minors(runtime.python)]
    raise RuntimeUnavailable(
        f"{runtime.name} needs Python {runtime.python}, and none that can make an environment is here.{listing}",
        f"Install one of Python {', '.join(versions)} with its venv module, so that python{versions[-1]} is on PATH."
        if versions
        else "Correct runtime.python in the target's target.toml: no version of Python 3 satisfies it.",
    )


def _on_path(name: str) -> Iterator[Path]:
    """Every program of that name on PATH, not only the first: a version manager's shim may lead nowhere."""
    seen = set()
    for folder in os.get_exec_path():
        path = Path(folder or ".") / name
        real = os.path.realpath(path)
        # In this order: in a folder that is closed to us, is_file raises.
        if real not in seen and os.access(path, os.X_OK) and path.is_file():
            seen.add(real)
            yield path.absolute()


@cache
def _probe(python: str) -> str:
    """What is to be said of an interpreter: "is 3.11" if it can make environments, or what is wrong with it."""
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            env=_variables(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "does not answer"
    except OSError as error:
        return f"does not start ({error.strerror})"
    if answer.returncode:
        missing = re.search(r"No module named '(ensurepip|venv)'", answer.stderr)
        return f"has no {missing[1]} module" if missing else "does not work"
    return f"is {answer.stdout.strip()}"


@contextmanager
def _alone(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of the environment that goes to `folder`; the kernel lets go of it if we are killed."""
    lock = folder.with_name(f".{folder.name}.lock")
    with output_errors(lock, _ELSEWHERE):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            # Some cluster file systems have no locks. Two builds at once then cost time, but break nothing.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield


def _build(asked: EnvironmentSpec, python: Path, folder: Path, progress: Progress) -> Environment:
    """Make the environment in a temporary sibling of `folder` and rename it."""
    with (
        new_folder(folder, RECORD, _ELSEWHERE) as temporary,
        progress.task(f"Installing {asked.title}", total=1.0) as advance,
    ):
        (temporary / _BUILDING).mkdir()
        _run([python, "-I", "-m", "venv", temporary], asked, temporary, lambda line: None)
        advance(0.1, "environment made")
        pip: list[str | Path] = [
            temporary / "bin" / "python",
            "-I",
            "-m",
            "pip",
            "--no-input",
            "--disable-pip-version-check",
        ]
        given = _run([*pip, "config", "list"], asked, temporary, lambda line: None, _variables(files=True))
        settings = {**_variables(), **_from_files(given)}
        if asked.locked is not None and "setuptools" not in asked.locked:  # up to 3.11, venv brings it with pip
            _run([*pip, "uninstall", "--yes", "setuptools"], asked, temporary, lambda line: None, settings)
        file = _requirements_file(asked, temporary / _BUILDING)
        install = [*pip, "install", "--progress-bar", "off", *asked.options, "-r", file]
        done = 0.1

        def follow(line: str) -> None:
            # How many there are is known only at the end: each takes a step of what is left up to 0.8.
            nonlocal done
            step = re.match(r"\s*(Collecting|Processing|Installing collected packages)[: ]\s*([^\s,]+)", line)
            if step and step[1].startswith("Installing"):
                advance(0.8 - done, "unpacking")
                done = 0.8
            elif step and done < 0.8:
                advance((0.8 - done) * 0.1, Path(step[2]).name)
                done += (0.8 - done) * 0.1

        _run(install, asked, temporary, follow, settings)
        advance(0.95 - done, "taking stock")
        said = _run([*pip, "list", "--format", "json"], asked, temporary, lambda line: None, settings)
        listed = json.loads(next(line for line in said if line.startswith("[{")))  # warnings may stand around it
        locked = {item["name"]: item["version"] for item in listed if item["name"] != "pip"}
        if differences := asked.differences(locked):
            raise RuntimeUnavailable(
                f"{asked.title} came out as something else: {', '.join(differences)}.",
                f"What pip installed was removed again; {_BASELINE}",
            )
        record = {
            "schema_version": SCHEMA_VERSION,
            "runtime": asked.target.runtime.name,
            "interpreter": str(python),
            "requirements": asked.requirements,
            "locked": locked,
        }
        write_json(temporary / RECORD, record)
        shutil.rmtree(temporary / _BUILDING)
        advance(0.05, "done")
    progress.say(f"Installed {asked.title} in {folder}.")
    return Environment(folder / "bin" / "python", locked, folder)


def _requirements_file(asked: EnvironmentSpec, folder: Path) -> Path:
    """What pip reads: the target's own file, since its lines may name others beside it, or one in `folder`."""
    if asked.locked is None:
        return asked.target.requirements.absolute()
    file = folder / "requirements.txt"
    file.write_text(asked.requirements, encoding="utf-8")
    return file


def _run(
    command: Sequence[str | Path],
    asked: EnvironmentSpec,
    folder: Path,
    on_line: Callable[[str], None],
    variables: dict[str, str] | None = None,
) -> list[str]:
    """Run a step of an installation and return the lines of its output; whatever happens, it has ended.

    Raises:
        RuntimeUnavailable: it failed. The message holds the line that says why.
        OSError: with ENOSPC, if the disk was full.
    """
    lines = []
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=asked.target.folder,  # where a requirement such as ./my.whl is looked for
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={
            **(variables or _variables()),
            "TMPDIR": str(folder / _BUILDING),
        },  # what an interrupted pip leaves goes with the folder
        start_new_session=True,  # with the compilers that it may start, one group to end
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            on_line(line)
        process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
    if process.returncode == 0:
        return [line for line in lines if line]
    # ensurepip hides what pip said; an environment needs some 20 MB before the runtime is in it.
    if any(_FULL.search(line) for line in lines) or shutil.disk_usage(folder).free < 1 << 20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise _failure(asked, lines)


def _failure(asked: EnvironmentSpec, lines: list[str]) -> RuntimeUnavailable:
    """What stopped an installation, out of all that pip has to say about it."""
    said = [line for line in lines if line.strip()]
    errors = [line.split(":", 1)[1].strip() for line in said if line.startswith("ERROR:")]
    reason = (errors or said or ["it ended without a word"])[-1]
    if any(_OFFLINE.search(line) for line in said):
        problem = f"{asked.title} could not be downloaded: {reason}"
        remedy = (
            "Check the network and pip's settings (index, proxy), then repeat the command; nothing was left behind."
        )
        locked = f"Check the network and pip's settings (index, proxy), or {_BASELINE}"
    else:
        problem = f"{asked.title} could not be installed: {reason}"
        file = asked.target.requirements
        remedy = f"{file} names what is installed; `pip install -r` of it shows all that pip has to say."
        locked = f"These versions may be gone from the index, or not be made for this Python; {_BASELINE}"
    return RuntimeUnavailable(problem, remedy if asked.locked is None else locked)


def _variables(*, files: bool = False) -> dict[str, str]:
    """Our environment variables without those that would lead an interpreter or pip elsewhere.

    pip's own files of settings are not read, unless `files`: then by the user's PIP_CONFIG_FILE.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _LEFT_OUT and (not name.startswith("PIP_") or _setting(name) in _WHERE_FROM)
    }
    if not files:
        return {**kept, "PIP_CONFIG_FILE": os.devnull}  # pip's documentation: then it reads no file at all
    return {**kept, **{name: os.environ[name] for name in ("PIP_CONFIG_FILE",) if name in os.environ}}


def _setting(variable: str) -> str:
    return variable.removeprefix("PIP_").lower().replace("_", "-")


def _from_files(listed: Sequence[str]) -> dict[str, str]:
    """What pip's files say of where packages come from, as variables. `listed` is what `pip config list` prints.

    The variables that the user has set go before, and [install] before [global], as in pip.
    """
    settings = {}
    for section in ("global", "install"):
        for line in listed:
            name, sign, value = line.partition("=")
            setting = name.removeprefix(f"{section}.").lower().replace("_", "-")
            if not (sign and name.startswith(f"{section}.") and setting in _WHERE_FROM):
                continue
            variable = f"PIP_{setting.upper().replace('-', '_')}"
            if not os.environ.get(variable):
                with suppress(ValueError, SyntaxError):
                    settings[variable] = str(ast.literal_eval(value))
    return settings
