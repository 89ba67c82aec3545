"""Targets made up for a test: a folder with an `engine.py`, and an interpreter that is only a shell script."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from acdc_export.config import Graph, License, Precision, Runtime, Target
from acdc_export.engines import Environment, environment

MIT = License(name="MIT", url="https://opensource.org/license/mit", deployable=True)
ENGINE = """\
import os, signal, sys, time
import numpy as np
{top}

def load(model, batch_size, threads, precision):
    {load}
    return Model(model, batch_size, threads, precision)

class Model:
    def __init__(self, model, batch_size, threads, precision):
        self.given = {{"model": model, "batch_size": batch_size, "threads": threads, "precision": precision}}

    def info(self):
        return {{"runtime": "fake", "version": "1.0", **self.given, "omp": os.environ["OMP_NUM_THREADS"],
                "cpus": sorted(os.sched_getaffinity(0)), "here": os.environ.get("FAKE_VARIABLE")}}

    def run(self, inputs):
        {run}
        return {{name + "/out": 2 * array for name, array in inputs.items()}}

    def bind(self, inputs):
        def once():
            {once}
        return once
"""
BUILD = """

def build(model, stem, precision, batch_sizes, batches):
    {build}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder of its own."""
    monkeypatch.setenv("ACDC_EXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ACDC_EXPORT_ACCEPT_LICENSE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def community() -> License:
    """A license that has to be accepted."""
    return License(
        name="Community License",
        url="https://example.org/license",
        deployable=False,
        notice="For evaluation only.",
        accept=True,
    )


@pytest.fixture
def make_target(tmp_path: Path) -> Callable[..., Target]:
    """Makes a target called "fake"; keyword arguments are lines of its `engine.py`, and what it requires. It has a
    `build` if there are lines for that."""

    def make(
        *,
        top: str = "",
        load: str = "pass",
        run: str = "pass",
        once: str = "pass",
        build: str = "",
        requirements: str = "",
        python: str = ">=3.8,<4.0",
        machines: tuple[str, ...] = ("x86_64", "aarch64"),
        license: License = MIT,
    ) -> Target:
        folder = tmp_path / "fake target"
        folder.mkdir(exist_ok=True)
        text = ENGINE.format(top=top, load=load, run=run, once=once) + (BUILD.format(build=build) if build else "")
        (folder / "engine.py").write_text(text)
        (folder / "requirements.txt").write_text(requirements)
        return Target(
            name="fake",
            description="made up",
            runtime=Runtime("fake", python, variables={"FAKE_VARIABLE": "set"}, machines=machines),
            license=license,
            graph=Graph(passes=()),
            precisions={"fp32": Precision(tolerance=1e-3)},
            folder=folder,
        )

    return make


@pytest.fixture
def here(tmp_path: Path) -> Environment:
    """The interpreter that runs the tests, as an environment: it has numpy, which is all that a fake needs."""
    return Environment(Path(sys.executable), {}, tmp_path / "environment")


@pytest.fixture
def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a shell script in place of our own interpreter; its "pip install" runs the shell code given.

    Returns the file to which it appends a line whenever it makes an environment.
    """

    def put(install: str) -> Path:
        made, python, inner = tmp_path / "made", tmp_path / "python", tmp_path / "inner"
        made.touch()
        inner.write_text(
            "#!/bin/sh\n"
            'case "$*" in\n'
            f"*' install '*) {install} ;;\n"
            """*' list '*) echo '[{"name": "pip", "version": "9"}, {"name": "speck", "version": "1.0"}]' ;;\n"""
            "esac\n"
        )
        python.write_text(
            "#!/bin/sh\n"
            'case "$*" in\n'
            f"*'import sys'*) echo 3.{sys.version_info.minor} ;;\n"
            "*'-m venv'*)\n"
            f"  echo made >> '{made}'\n"
            '  for folder; do :; done; mkdir -p "$folder/bin"\n'
            f"""  cp '{inner}' "$folder/bin/python" ;;\n"""
            "esac\n"
        )
        inner.chmod(0o755)
        python.chmod(0o755)
        monkeypatch.setattr(sys, "_base_executable", str(python))
        return made

    environment._probe.cache_clear()
    return put


@pytest.fixture
def killed() -> Iterator[list[int]]:
    """Processes that a test may leave behind when it fails: ended after it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def is_gone() -> Callable[[int], bool]:
    """Whether a process ends, given time; one that waits to be reaped by an init of its own has ended."""

    def check(pid: int) -> bool:
        for _ in range(400):
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                return True
            if state == "Z":
                return True
            time.sleep(0.05)
        return False

    return check


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Path], str]:
    """The text of a file that another process will write."""

    def wait(path: Path) -> str:
        for _ in range(1200):
            with suppress(OSError):
                if text := path.read_text():
                    return text
            time.sleep(0.05)
        raise AssertionError(f"{path} never came")

    return wait
