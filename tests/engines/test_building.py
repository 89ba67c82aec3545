"""What `build` hands to an `engine.py`, what it takes from it, and what is left when that goes wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acdc_export.config import Precision, Target
from acdc_export.engines import Built, Environment, InstalledTarget, Timeouts, building, environment, worker
from acdc_export.errors import EngineDied, EngineTimeout, ModelRefused, RuntimeUnavailable, UsageError

CORE = max(os.sched_getaffinity(0))
INPUTS = {"x": np.arange(24, dtype=np.float32).reshape(6, 4), "../y": np.arange(6)}
WRITE = "open(stem + '.a', 'w').close(); open(stem + '.b', 'w').close()"
Build = Callable[..., Built]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """Where workers may leave something: in memory, on disk."""
    made = tmp_path / "memory", tmp_path / "disk"
    for folder in made:
        folder.mkdir()
    monkeypatch.setattr(worker, "_MEMORY", made[0])
    monkeypatch.setattr("tempfile.tempdir", str(made[1]))
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where things are built."""
    (tmp_path / "built").mkdir()
    return tmp_path / "built"


@pytest.fixture
def build(make_target: Callable[..., Target], here: Environment, place: Path, folders: tuple[Path, ...]) -> Build:
    """Builds with a made-up target; keyword arguments as `make_target` has them."""

    def do(
        inputs: Any = INPUTS, cpus: Any = (CORE,), timeouts: Timeouts = worker.DEFAULT_TIMEOUTS, **lines: str
    ) -> Built:
        options = {"precision": "int8", "batch_sizes": [2, 5], "cpus": cpus, "inputs": inputs, "timeouts": timeouts}
        return building.build(make_target(**lines), here, Path("some.onnx"), place / "mine-b1", **options)

    return do


def test_what_it_is_given(build: Build, place: Path, folders: tuple[Path, ...]) -> None:
    """Samples lie on disk: there may be more of them than room in memory."""
    settled = "[os.environ['OMP_NUM_THREADS'], sorted(os.sched_getaffinity(0)), os.path.dirname(os.getcwd())]"
    take = "[{name: array.tolist() for name, array in batch.items()} for batch in batches]"
    write = f"json.dump([model, stem, precision, len(batches), {take}, {take}, WHEN], open(stem + '.json', 'w'))"
    built = build(top=f"WHEN = {settled}; import json", build=f"{write}; return stem + '.json'")
    wanted = [{name: array[at : at + 2].tolist() for name, array in INPUTS.items()} for at in (0, 2, 4)]
    file = place / "mine-b1.json"
    assert built == Built(file, (file,), deployed=(file,), zeros=None)
    assert json.loads(built.path.read_text()) == [
        str(Path("some.onnx").absolute()), str(place / "mine-b1"), "int8", 3, wanted, wanted,
        ["1", [CORE], str(folders[1])],
    ]  # fmt: skip


def test_batches_are_arrays_of_their_own(build: Build) -> None:
    """Not views of a file: a runtime may keep them, and may check their type."""
    check = (
        "assert all(type(array) is np.ndarray and array.flags.owndata for batch in batches for array in batch.values())"
    )
    assert build(build=f"{check}; {WRITE}; return stem + '.a'").files


def test_all_files_of_its_stem(build: Build, place: Path) -> None:
    """And those of another whose name begins like it are not."""
    (place / "mine-b16.a").touch()
    (place / "mine-b1").touch()
    built = build(build=f"{WRITE}; return stem + '.b'")
    assert (built.path, built.files) == (place / "mine-b1.b", (place / "mine-b1.a", place / "mine-b1.b"))
    assert built.deployed == built.files


def test_zeros_that_it_counts(build: Build) -> None:
    top = "def weights(path): return {os.path.basename(path): [3, 4], 'other': (0, 7)}"
    built = build(top=top, build=f"{WRITE}; return stem + '.a'")
    assert built.zeros == {"mine-b1.a": (3, 4), "other": (0, 7)}


def test_what_of_it_is_deployed(build: Build, place: Path) -> None:
    """The rest tells how it was made, and is kept beside it."""
    built = build(top="def deployed(path): return [path]", build=f"{WRITE}; return stem + '.b'")
    assert built.files == (place / "mine-b1.a", place / "mine-b1.b")
    assert built.deployed == (place / "mine-b1.b",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({}, "NotImplementedError: it has no `build`"),
        ({"build": f"{WRITE}; return stem + '.a'", "top": "deployed = lambda path: [path, 'x']"}, "'x', which is no"),
        ({"build": f"{WRITE}; return stem + '.a'", "top": "deployed = lambda path: path"}, "`deployed` gives no list"),
        ({"build": f"{WRITE}; raise ValueError('no such\\n  operator')"}, "ValueError: no such operator"),
        ({"build": f"{WRITE}; return stem + '.c'"}, "mine-b1.c', which is no file"),
        ({"build": f"{WRITE}; return model"}, "some.onnx', which is no file"),
        ({"build": f"{WRITE}; open(stem + '2.a', 'w'); return stem + '2.a'"}, "mine-b12.a', which is no file"),
        ({"build": WRITE}, "'None', which is no file"),
        ({"build": f"{WRITE}; return stem + '.a'", "top": "weights = lambda path: [1, 2]"}, "`weights` are no zeros"),
        ({"build": f"{WRITE}; return stem + '.a'", "top": "weights = lambda path: {'w': 3}"}, "`weights` are no zeros"),
        ({"build": f"{WRITE}; return stem + '.a'", "top": "def weights(path): 1 / 0"}, "ZeroDivisionError"),
    ],
)
def test_what_it_can_not_do_is_refused_and_leaves_nothing(
    build: Build, place: Path, folders: tuple[Path, ...], tmp_path: Path, lines: dict[str, str], message: str
) -> None:
    with pytest.raises(ModelRefused, match="fake with some.onnx refused `build`: ") as caught:
        build(**lines)
    assert message in caught.value.message
    assert len(str(caught.value).splitlines()) == 2
    assert str(tmp_path / "fake target" / "engine.py") in caught.value.remedy
    assert not list(place.glob("mine-b1.*"))
    assert not [left for folder in folders for left in folder.iterdir()]


def test_a_crash(build: Build, place: Path, folders: tuple[Path, ...]) -> None:
    with pytest.raises(EngineDied, match=r"died in `build` \(SIGSEGV\); its last words: about to crash"):
        build(build=f"{WRITE}; os.write(2, b'about to crash'); os.kill(os.getpid(), signal.SIGSEGV)")
    assert not [left for folder in (place, *folders) for left in folder.iterdir()]


def test_a_hang(build: Build, place: Path, folders: tuple[Path, ...]) -> None:
    with pytest.raises(EngineTimeout, match="did not answer to `build` within 2 s"):
        build(timeouts=Timeouts(build=2.0), build=f"{WRITE}; time.sleep(1000)")
    assert not [left for folder in (place, *folders) for left in folder.iterdir()]


def test_a_tool_that_is_not_there(build: Build) -> None:
    with pytest.raises(RuntimeUnavailable, match="No module named 'no_such_tool'"):
        build(build="import no_such_tool")


LACKS = """
class Unavailable(Exception):
    remedy = "Install\\n a compiler."
"""


def test_what_a_build_takes_is_named_with_what_to_do(build: Build, place: Path) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        build(top=LACKS, build=f"{WRITE}; raise Unavailable('no\\n compiler')")
    assert str(caught.value) == "fake: no compiler\nInstall a compiler."
    assert not list(place.glob("mine-b1.*"))


def test_an_error_that_knows_a_remedy(build: Build) -> None:
    """As errors of ours do, whose text is both."""
    top = "class Odd(Exception):\n    message, remedy = 'no Foo', 'Leave it out.'"
    with pytest.raises(ModelRefused) as caught:
        build(top=top, build="raise Odd('no Foo. Leave it out.')")
    assert str(caught.value) == "fake with some.onnx refused `build`: Odd: no Foo\nLeave it out."


@pytest.mark.parametrize(("python", "builds"), [("host", True), ("host", False), (">=3.8", True)])
def test_whether_it_can_build_is_asked_in_the_hosts_interpreter_alone(
    make_target: Callable[..., Target], python: str, builds: bool
) -> None:
    """One of its own has all that it takes."""
    lacks = f"{LACKS}\ndef can_build(precision):\n    if precision == 'fp32': raise Unavailable('no compiler')"
    precisions = {name: Precision(tolerance=1e-3, build=builds) for name in ("fp32", "int8")}
    target = replace(make_target(top=lacks, build=WRITE, python=python), precisions=precisions)
    installed = InstalledTarget(target, environment.host())
    installed.check_build("int8")
    asked = python == "host" and builds
    with pytest.raises(RuntimeUnavailable, match="no compiler") if asked else nullcontext():
        installed.check_build("fp32")


def test_a_runtime_that_does_not_say_whether_it_can_build(
    make_target: Callable[..., Target], here: Environment
) -> None:
    building.check(make_target(), here, "fp32")
    with pytest.raises(RuntimeUnavailable, match="can't be imported: ModuleNotFoundError: No module named 'nothing'"):
        building.check(make_target(top="import nothing"), here, "fp32")


def test_what_is_there_is_not_written_over(build: Build, place: Path) -> None:
    (place / "mine-b1.b").write_text("kept")
    with pytest.raises(UsageError, match="mine-b1.b is there already"):
        build(build=f"{WRITE}; return stem + '.a'")
    assert (place / "mine-b1.b").read_text() == "kept"


@pytest.mark.parametrize(
    "inputs",
    [{"x": np.zeros((0, 4))}, {"x": np.zeros((5, 4))}, {"x": np.zeros((4, 4)), "y": np.zeros(2)}],
)
def test_samples_that_are_no_whole_batches(build: Build, inputs: Any) -> None:
    with pytest.raises(UsageError, match="whole batches of 2"):
        build(inputs, build=f"{WRITE}; return stem + '.a'")


def test_a_precision_that_needs_no_samples(build: Build) -> None:
    check = "assert batches is None; assert batch_sizes == [2, 5]"
    assert build({}, build=f"{check}; {WRITE}; return stem + '.a'").files


def test_cores_that_are_not_there(build: Build) -> None:
    with pytest.raises(UsageError, match="may use"):
        build(cpus=(100_000,), build=f"{WRITE}; return stem + '.a'")


def test_from_a_seat(make_target: Callable[..., Target], here: Environment, place: Path) -> None:
    target = make_target(build="open(stem + '.' + precision, 'w').close(); return stem + '.' + precision")
    installed = InstalledTarget(target, here)
    built = installed.build(
        Path("some.onnx"), place / "it", precision="int8", batch_sizes=[3], cpus=[CORE], inputs={"x": np.zeros((3, 1))}
    )
    assert built.path == place / "it.int8"
    with installed.open(built.path, batch_size=3, cpus=[CORE], precision="int8") as engine:
        assert engine.info()["precision"] == "int8"
