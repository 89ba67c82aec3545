"""Environments: how they are found and made, and that nothing half-made is ever taken for one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from acdc_export.config import License, Target
from acdc_export.engines import ensure, environment, spec, status
from acdc_export.errors import OutputError, RuntimeUnavailable, UsageError
from acdc_export.progress import Advance, Progress

Make = Callable[..., Target]
FakePython = Callable[[str], Path]


@pytest.fixture(autouse=True)
def no_settings_of_pip(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.tasks: list[str] = []
        self.done = 0.0

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Advance]:
        def advance(amount: float = 1.0, detail: str = "") -> None:
            assert amount >= 0
            self.done += amount

        self.tasks.append(description)
        yield advance
        assert self.done == pytest.approx(total)


def make_wheel(folder: Path, name: str = "speck", version: str = "1.0", header: str = "") -> str:
    """A wheel made by hand with one module, and a line of metadata more; returns the file's name."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "FOUND = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{header}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    file = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / file, "w") as wheel:
        for path, content in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            wheel.writestr(path, content)
    return file


def left_in(home: Path) -> list[str]:
    """What is in the folder of environments, but for locks."""
    return sorted(path.name for path in (home / "environments").iterdir() if path.suffix != ".lock")


def test_without_a_network_then_with_one_then_found_again(
    home: Path, make_target: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_target(requirements="speck==1.0\n")
    assert status(target).state == "installable"
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    with pytest.raises(RuntimeUnavailable, match="fake could not be downloaded: No matching distribution") as caught:
        ensure(target)
    assert "network" in caught.value.remedy
    assert left_in(home) == []

    # What could lead an interpreter or pip astray, and must not.
    monkeypatch.setenv("PYTHONPATH", str(target.folder))
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_TARGET", str(home / "elsewhere"))
    make_wheel(target.folder)
    target.requirements.write_text("./speck-1.0-py3-none-any.whl\n")
    told = Told()
    made = ensure(target, progress=told)
    assert made.locked["speck"] == "1.0"
    assert "pip" not in made.locked
    command = [made.python, "-I", "-c", "import speck; print(speck.__file__)"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found).is_relative_to(made.folder)
    assert left_in(home) == [made.folder.name]
    assert made.folder.name.startswith("fake-")
    assert status(target).state == "installed"

    monkeypatch.setattr(environment, "_run", None)  # nothing is run to find it again
    monkeypatch.setattr(environment, "_probe", None)
    assert ensure(target) == made


def test_other_requirements_are_another_environment(make_target: Make, fake_python: FakePython) -> None:
    made = fake_python("true")
    folders = {ensure(make_target(requirements=text)).folder for text in ("a", "b", "a")}
    assert len(folders) == 2
    assert made.read_text() == "made\n" * 2


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ("ERROR: first\nhint: no\nERROR: the reason", RuntimeUnavailable, "fake could not be installed: the reason"),
        (
            "WARNING: Retrying after connection broken by X\nERROR: No matching distribution found for y",
            RuntimeUnavailable,
            "fake could not be downloaded: No matching distribution found for y",
        ),
        ("ERROR: [Errno 28] No space left on device", OutputError, "No space left on device"),
        ("one thing\nand another", RuntimeUnavailable, "fake could not be installed: and another"),
        ("", RuntimeUnavailable, "ended without a word"),
    ],
)
def test_the_decisive_line(
    home: Path, make_target: Make, fake_python: FakePython, said: str, error: type[Exception], message: str
) -> None:
    fake_python("printf '" + said.replace("\n", r"\n") + "'; exit 1")
    with pytest.raises(error, match="^[^\n]*" + message.replace("[", r"\[")) as caught:
        ensure(make_target())
    assert len(str(caught.value).splitlines()) == 2
    assert left_in(home) == []
    fake_python("true")
    assert ensure(make_target()).locked == {"speck": "1.0"}


def test_a_home_that_cannot_be_written(home: Path, make_target: Make, fake_python: FakePython) -> None:
    fake_python("true")
    home.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="ACDC_EXPORT_HOME"):
        ensure(make_target())


def test_an_interpreter_that_went_away(make_target: Make, fake_python: FakePython) -> None:
    made = fake_python("true")
    environment_ = ensure(make_target())
    environment_.python.unlink()
    environment_.python.symlink_to("/no/such/python")
    assert status(make_target()).state == "installable"
    assert ensure(make_target()) == environment_
    assert made.read_text() == "made\n" * 2


@pytest.mark.parametrize("where", ["variables", "named", "home"])
def test_of_pips_settings_only_those_of_where_from_count(
    home: Path, make_target: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    wheels, constraints = tmp_path / "wheels", tmp_path / "constraints.txt"
    wheels.mkdir()
    make_wheel(wheels, version="1.0")
    make_wheel(wheels, version="2.0")
    constraints.write_text("speck<2\n")
    settings = {"no-index": "1", "find-links": str(wheels), "constraint": str(constraints), "dry-run": "1"}
    settings |= {"no-deps": "1", "target": str(tmp_path / "elsewhere"), "user": "1", "require-hashes": "1"}
    if where != "variables":
        file = tmp_path / "pip" / "pip.conf"
        file.parent.mkdir()
        if where == "named":
            monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
        else:
            monkeypatch.delenv("PIP_CONFIG_FILE")
            monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        lines = [f"{name} = {value}" for name, value in settings.items()]
        file.write_text("\n".join(["[global]", *lines[:3], "[install]", *lines[3:]]) + "\n")
    else:
        for name, value in settings.items():
            monkeypatch.setenv(f"PIP_{name.upper().replace('-', '_')}", value)
    assert ensure(make_target(requirements="speck\n")).locked["speck"] == "2.0"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 99, "locked": {}}'])
def test_a_damaged_record_is_made_anew(make_target: Make, fake_python: FakePython, content: str) -> None:
    fake_python("true")
    made = ensure(make_target())
    (made.folder / "environment.json").write_text(content)
    assert ensure(make_target()) == made
    assert json.loads((made.folder / "environment.json").read_text())["locked"] == {"speck": "1.0"}


def test_the_wrong_machine(home: Path, make_target: Make) -> None:
    target = make_target(machines=("vax", "pdp11"))
    with pytest.raises(RuntimeUnavailable, match="runs on Linux on vax or pdp11; this is"):
        ensure(target)
    assert status(target).state == "unavailable"
    assert not home.exists()


def test_a_license_comes_before_anything_is_installed(
    home: Path, make_target: Make, fake_python: FakePython, community: License
) -> None:
    made = fake_python("true")
    target = make_target(license=community)
    assert "--accept-license fake" in status(target).detail
    with pytest.raises(RuntimeUnavailable, match="--accept-license fake"):
        ensure(target)
    assert made.read_text() == ""
    installed = ensure(target, accept_licenses=frozenset({"fake"}))
    assert ensure(target) == installed
    # And before what is installed is used: by somebody else with the same home, say.
    (home / "licenses.json").unlink()
    with pytest.raises(RuntimeUnavailable, match="--accept-license fake"):
        ensure(target)
    assert ensure(target, ask=lambda notice: True) == installed


@pytest.mark.parametrize(
    ("python", "minors"),
    [
        (">=3.8,<3.12", [8, 9, 10, 11]),
        (" > 3.8 , <= 3.10 ", [9, 10]),
        ("==3.11", [11]),
        ("<3.2", [0, 1]),
        (">=4.0", []),
        ("<3.9", list(range(9))),
    ],
)
def test_supported_minors(python: str, minors: list[int]) -> None:
    assert environment.supported_minors(python) == minors


class TestWithoutOurOwnPython:
    """The target does not support the interpreter that we run in: one has to be found on PATH."""

    @pytest.fixture
    def folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
        folders = (tmp_path / "first", tmp_path / "second")
        for folder in folders:
            folder.mkdir()
        monkeypatch.setenv("PATH", ":".join([*map(str, folders), "", "/usr/bin", "/bin"]))
        monkeypatch.setattr(environment, "_PROBE_SECONDS", 1.0)
        environment._probe.cache_clear()
        return folders

    def put(self, path: Path, script: str) -> None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def test_one_that_works_behind_others_that_do_not(self, folders: tuple[Path, Path], make_target: Make) -> None:
        first, second = folders
        self.put(first / "python3.2", "echo 'command not found' >&2; exit 127")
        self.put(first / "python3.1", "echo 3.1")
        self.put(second / "python3.2", "echo 3.2")
        (first / "python3.3").mkdir()
        assert environment._interpreter(make_target(python="<3.4").runtime) == (second / "python3.2", 2)

    def test_none(self, folders: tuple[Path, Path], make_target: Make) -> None:
        first, second = folders
        self.put(first / "python3.4", "echo 'command not found' >&2; exit 127")
        self.put(first / "python3.3", "exec sleep 100")
        self.put(second / "python3.3", "echo \"No module named 'ensurepip'\" >&2; exit 1")
        self.put(first / "python3.2", "echo 3.11")
        (first / "python3.1").write_text("not a program")
        (first / "python3.1").chmod(0o755)
        target = make_target(python=">=3.1,<3.5")
        with pytest.raises(RuntimeUnavailable) as caught:
            ensure(target)
        message, remedy = str(caught.value).splitlines()
        own = f"is 3.{sys.version_info.minor}"
        for part in (own, "3.4 does not work", "3.3 does not answer", "has no ensurepip", "3.1 does not start"):
            assert part in message
        assert f"{first}/python3.2 is 3.11" in message
        assert "3.1, 3.2, 3.3, 3.4" in remedy
        assert status(target).state == "unavailable"

    def test_none_is_possible(self, make_target: Make) -> None:
        with pytest.raises(RuntimeUnavailable, match=r"target\.toml"):
            ensure(make_target(python=">=4.0"))


@contextmanager
def ensuring(target: Target, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`ensure` in a process of its own, with the same stand-in for our interpreter, writing to `output`."""
    script = f"""
        import pickle, sys
        from acdc_export.engines import ensure
        from acdc_export.present.progress import TerminalProgress
        sys._base_executable = {sys._base_executable!r}
        print(ensure(pickle.loads({pickle.dumps(target)!r}), progress=TerminalProgress()).folder)
    """
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)], stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_two_at_once_make_one(
    home: Path, make_target: Make, fake_python: FakePython, tmp_path: Path, wait_for: Callable[[Path], str]
) -> None:
    go = tmp_path / "go"
    made = fake_python(f"while ! [ -e '{go}' ]; do sleep 0.05; done")
    target = make_target()
    with ensuring(target, tmp_path / "first") as first:
        wait_for(made)
        with ensuring(target, tmp_path / "second") as second:
            assert "Waiting for another process that installs fake" in wait_for(tmp_path / "second")
            go.touch()
            assert (first.wait(), second.wait()) == (0, 0)
    assert made.read_text() == "made\n"
    assert len(left_in(home)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed(
    home: Path,
    make_target: Make,
    fake_python: FakePython,
    tmp_path: Path,
    wait_for: Callable[[Path], str],
    is_gone: Callable[[int], bool],
    killed: list[int],
    number: signal.Signals,
) -> None:
    pip = tmp_path / "pip"
    fake_python(f"echo $$ > '{pip}'; exec sleep 1000")
    target = make_target()
    with ensuring(target, tmp_path / "output") as process:
        killed.append(int(wait_for(pip)))
        os.kill(process.pid, number)
        process.wait()
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in (tmp_path / "output").read_text()
        assert is_gone(killed[0])
        assert left_in(home) == []
    else:
        assert [name.startswith(".fake-") for name in left_in(home)] == [True]
    fake_python("true")
    made = ensure(target)
    assert left_in(home) == [made.folder.name]


class TestLocked:
    """The versions that a bundle has locked, which today's requirements may no longer lead to."""

    @pytest.mark.slow
    def test_just_these(self, make_target: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        target = make_target(requirements="--no-index\n./speck-1.0-py3-none-any.whl\n")
        make_wheel(target.folder)
        make_wheel(target.folder, version="2.0", header="Requires-Dist: nowhere-to-be-found")
        make_wheel(target.folder, "an_other", version="0.1.post1+local")
        wanted = {"speck": "2.0", "an-other": "0.1.post1+local"}
        told = Told()
        made = ensure(target, locked=wanted, progress=told)
        # By itself, venv would have put setuptools there, where Python is older than 3.12.
        assert made.locked in (wanted, {"speck": "2.0", "an_other": "0.1.post1+local"})
        assert told.tasks == ["Installing fake as it was locked"]
        assert status(target).state == "installable"

        ordinary = ensure(target)
        assert ordinary.locked["speck"] == "1.0"
        assert ordinary.folder != made.folder
        assert ordinary.folder.parent == made.folder.parent

        monkeypatch.setattr(environment, "_run", None)  # nothing is run to find them again
        assert ensure(target, locked=wanted) == made
        assert ensure(target, locked=dict(reversed(ordinary.locked.items()))) == ordinary
        assert ensure(target) == ordinary

    @pytest.mark.parametrize(
        ("locked", "differences"),
        [
            ({"speck": "1.1"}, "speck is 1.0 and not 1.1"),
            ({"speck": "1.0.0"}, "speck is 1.0 and not 1.0.0"),
            ({"Grain": "3", "speck": "1.0"}, "grain 3 is missing"),
            ({"grain": "3"}, "grain 3 is missing, speck 1.0 is there as well"),
        ],
    )
    def test_anything_else_does_not_count(
        self, home: Path, make_target: Make, fake_python: FakePython, locked: dict[str, str], differences: str
    ) -> None:
        made = fake_python("true")
        ordinary = ensure(make_target())
        with pytest.raises(RuntimeUnavailable) as caught:
            ensure(make_target(), locked=locked)
        assert made.read_text() == "made\n" * 2
        assert caught.value.message == f"fake as it was locked came out as something else: {differences}."
        assert "`acdc-export check NEW --baseline FILE`" in caught.value.remedy
        assert left_in(home) == [ordinary.folder.name]

    def test_what_pip_is_told(self, make_target: Make, fake_python: FakePython, tmp_path: Path) -> None:
        told = tmp_path / "told"
        fake_python(f"""echo "$*" > '{told}'; for file; do :; done; cat "$file" >> '{told}'""")
        requirements = "speck<9\n--extra-index-url https://example.org/simple\n-e ./here\n-c other.txt\n  -f wheels\n"
        ensure(make_target(requirements=requirements), locked={"Speck": "1.0"})
        arguments, *lines = told.read_text().splitlines()
        assert " --no-deps --find-links . -r " in arguments
        assert lines == ["--extra-index-url https://example.org/simple", "  -f wheels", "Speck==1.0"]

    def test_never_in_the_place_of_the_ordinary_one(self, make_target: Make) -> None:
        target = make_target(requirements="speck==1.0\n")
        ordinary, exact = spec.ordinary(target), spec.exact(target, {"speck": "1.0"})
        assert ordinary.requirements == exact.requirements
        assert ordinary.folder_name(11) != exact.folder_name(11)

    def test_setuptools_goes_only_where_it_is_not_locked(
        self, make_target: Make, fake_python: FakePython, tmp_path: Path
    ) -> None:
        told = tmp_path / "told"
        told.touch()
        fake_python("true")
        inner = tmp_path / "inner"
        inner.write_text(inner.read_text().replace("case", f"echo \"$*\" >> '{told}'\ncase", 1))
        ensure(make_target())
        assert "uninstall" not in told.read_text()
        with pytest.raises(RuntimeUnavailable, match="setuptools 65 is missing"):
            ensure(make_target(), locked={"speck": "1.0", "setuptools": "65"})
        assert "uninstall" not in told.read_text()
        ensure(make_target(requirements="other"), locked={"speck": "1.0"})
        assert "uninstall --yes setuptools" in told.read_text()

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            ("ERROR: No matching distribution found for speck==2.0", "could not be installed: No matching"),
            (
                "WARNING: connection broken by X\nERROR: No matching distribution",
                "could not be downloaded: No matching",
            ),
        ],
    )
    def test_a_baseline_is_what_is_left(
        self, home: Path, make_target: Make, fake_python: FakePython, said: str, message: str
    ) -> None:
        fake_python(f"echo '{said}'; exit 1")
        with pytest.raises(RuntimeUnavailable, match=f"fake as it was locked {message}") as caught:
            ensure(make_target(), locked={"speck": "2.0"})
        assert "`acdc-export check NEW --baseline FILE`" in caught.value.remedy
        assert len(str(caught.value).splitlines()) == 2
        assert left_in(home) == []

    def test_a_record_that_was_changed_is_not_believed(self, make_target: Make, fake_python: FakePython) -> None:
        made = fake_python("true")
        first = ensure(make_target(), locked={"speck": "1.0"})
        record = first.folder / "environment.json"
        record.write_text(record.read_text().replace('"1.0"', '"1.1"'))
        assert ensure(make_target(), locked={"speck": "1.0"}) == first
        assert made.read_text() == "made\n" * 2

    def test_the_license_is_asked_for_as_ever(
        self, make_target: Make, fake_python: FakePython, community: License
    ) -> None:
        made = fake_python("true")
        with pytest.raises(RuntimeUnavailable, match="--accept-license fake"):
            ensure(make_target(license=community), locked={"speck": "1.0"})
        assert made.read_text() == ""
        assert ensure(make_target(license=community), locked={"speck": "1.0"}, ask=lambda notice: True).locked

    @pytest.mark.parametrize(
        "locked",
        [
            {"-r": "1.0"},
            {"--index-url": "1.0"},
            {"speck\n--index-url https://example.org\nspeck": "1.0"},
            {"speck @ https://example.org/speck.whl": "1.0"},
            {"speck[all]": "1.0"},
            {"./speck": "1.0"},
            {"fleck-": "1.0"},
            {"ſpeck": "1.0"},
            {"": "1.0"},
            {"speck": ""},
            {"speck": "1.0\n"},
            {"speck": "1.*"},
            {"speck": ">=1.0"},
            {"speck": "1.0,<2"},
            {"speck": "1.0 ; python_version > '3'"},
            {"speck": "1.0 --hash=sha256:00"},
            {"speck": "1.0 -r other.txt"},
            {"speck": "file:///speck"},
            {"speck": "١"},
            {"speck": "1.0", "good": "2", "bad\x1b[2J": "3" * 10_000},
            {"speck": "1.0", "SPECK": "1.0"},
            {},
        ],
    )
    def test_what_is_no_version_of_a_distribution(
        self, home: Path, make_target: Make, fake_python: FakePython, locked: dict[str, str]
    ) -> None:
        made = fake_python("true")
        with pytest.raises(UsageError, match="fake can't be installed in the versions") as caught:
            ensure(make_target(), locked=locked)
        assert len(str(caught.value).splitlines()) == 2
        assert str(caught.value).replace("\n", "").isprintable()
        assert len(str(caught.value)) < 500
        assert made.read_text() == ""

    @pytest.mark.parametrize(
        "version", ["1", "1!2.0", "2026.10.18", "1.0rc1.post2.dev3", "2.1.0+cu118.x_y", "0+unknown"]
    )
    def test_versions_as_pip_lists_them(self, make_target: Make, version: str) -> None:
        assert f"PyYAML=={version}\n" in spec.exact(make_target(), {"PyYAML": version}).requirements
