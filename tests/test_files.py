"""Folders are complete or absent, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from acdc_export import files
from acdc_export.errors import BundleError, OutputError

MARKER = "marker.json"


def make(path: Path, content: str) -> None:
    with files.new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text(content)


def siblings(path: Path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir())


def test_appears_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "out"
    make(path, "old")
    make(path, "new")
    assert (path / MARKER).read_text() == "new"
    assert siblings(path) == ["out"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    make(path, "old")
    with pytest.raises(KeyboardInterrupt), files.new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text("half")
        raise KeyboardInterrupt
    assert (path / MARKER).read_text() == "old"
    assert siblings(path) == ["out"]


def test_a_foreign_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not a folder of ours"), files.new_folder(path, MARKER):
        pytest.fail("the work was begun")
    assert (path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    make(path, "new")
    assert (path / MARKER).read_text() == "new"


def test_a_full_disk_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "out"
    make(path, "old")
    with pytest.raises(OutputError, match="No space left") as caught, files.new_folder(path, MARKER):
        Path("/dev/full").write_text("the kernel answers ENOSPC")
    assert caught.value.exit_code == 2
    assert (path / MARKER).read_text() == "old"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="File exists"):
        make(tmp_path / "file" / "out", "new")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:  # root may write anywhere, so the system's answer is given by hand
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        make(tmp_path / "out", "new")


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "out"
    program = (
        "import sys, time; from pathlib import Path; from acdc_export import files\n"
        f"with files.new_folder(Path({str(path)!r}), {MARKER!r}) as folder:\n"
        "    print('in', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(siblings(path)) == 1
    make(path, "new")
    assert siblings(path) == ["out"]


def test_the_folder_of_a_running_process_is_not_swept(tmp_path: Path) -> None:
    foreign = tmp_path / f".out.tmp-{os.getppid()}"
    foreign.mkdir()
    make(tmp_path / "out", "new")
    assert foreign.is_dir()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_text("x"), "has 1 bytes instead of 3"),
        (lambda path: path.write_text("xyz"), "was altered"),
    ],
)
def test_damage_is_found(tmp_path: Path, change: object, problem: str) -> None:
    (tmp_path / "file").write_text("abc")
    recorded = files.fingerprints(tmp_path)
    assert files.damage(tmp_path, recorded) == []
    change(tmp_path / "file")  # type: ignore[operator]
    assert problem in files.damage(tmp_path, recorded)[0]


def test_a_path_out_of_the_folder_is_damage(tmp_path: Path) -> None:
    recorded = {"../../etc/hostname": files.Fingerprint("0", 0)}
    assert "points outside" in files.damage(tmp_path, recorded)[0]


@dataclass(frozen=True)
class Animal:
    """Version 3; version 2 said `legs`, and version 1 counted them in pairs."""

    name: str
    feet: int


UPGRADES: files.Upgrades = {
    1: lambda animal: {**animal, "legs": 2 * int(animal["pairs"])},
    2: lambda animal: files.renamed(animal, legs="feet"),
}


def read(path: Path, content: Any) -> Animal:
    path.write_text(json.dumps(content))
    return files.read_record(path, Animal, 3, BundleError, "Restore it.", ignore=("sound",), upgrades=UPGRADES)


@pytest.mark.parametrize(
    "content",
    [
        {"schema_version": 1, "name": "cat", "pairs": "2", "sound": "meow"},
        {"schema_version": 2, "name": "cat", "legs": 4},
        {"schema_version": 3, "name": "cat", "feet": 4},
    ],
)
def test_older_records_are_upgraded_step_by_step(tmp_path: Path, content: dict[str, Any]) -> None:
    assert read(tmp_path / "animal.json", content) == Animal("cat", 4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"schema_version": 0, "name": "cat", "legs": "4"}, "schema version 0; this release reads 1 and 2 and 3."),
        ({"schema_version": 4, "name": "cat", "feet": 4}, "Update acdc-export."),
        ({"schema_version": 1, "name": "cat", "pairs": []}, "cut off, or holds something else"),
        ({"schema_version": 1, "name": "cat", "pairs": "two"}, "cut off, or holds something else"),
        ({"schema_version": 1, "name": "cat"}, "cut off, or holds something else"),
        ({"schema_version": 2, "name": "cat"}, "feet"),
        ([], "cut off, or holds something else"),
    ],
)
def test_records_that_can_not_be_read(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(BundleError) as caught:
        read(tmp_path / "animal.json", content)
    assert said in str(caught.value)
