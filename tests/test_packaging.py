"""Every way of installing finds the built-in targets and pipelines, and the base alone is enough to deploy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import acdc_export
from acdc_export import resources

pytestmark = [pytest.mark.packaging, pytest.mark.slow]

ROOT = Path(acdc_export.__file__).parents[1]


def call(*command: object, cwd: Path | None = None) -> str:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are tracked or new, without what tests and tools leave beside them."""
    to = tmp_path_factory.mktemp("checkout")
    listed = call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)
    return to


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """A new environment with the wheel and its base dependencies only."""
    folder = tmp_path_factory.mktemp("base")
    call(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, checkout)
    call(sys.executable, "-m", "venv", folder / "venv")
    (wheel,) = folder.glob("*.whl")
    call(folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", wheel)
    return folder / "venv" / "bin" / "python"


def finds_everything(python: Path, cwd: Path) -> None:
    command = [python, "-m", "acdc_export"]
    for kind in ("targets", "pipelines"):
        listed = json.loads(call(*command, kind, "list", "--json", cwd=cwd))
        assert [row["name"] for row in listed] == resources.names(kind)
        for name in resources.names(kind):
            assert "no mistakes" in call(*command, kind, "check", name, cwd=cwd)
    program = "from acdc_export import resources; print(resources.root('targets') / 'serve.py')"
    assert Path(call(python, "-c", program, cwd=cwd).strip()).is_file()


def test_the_wheel(python: Path, tmp_path: Path) -> None:
    finds_everything(python, tmp_path)


def test_the_base_needs_neither_torch_nor_onnx(python: Path, tmp_path: Path) -> None:
    program = (
        "import sys, acdc_export.cli, acdc_export.workflow, acdc_export.present.report, acdc_export.engines\n"
        "from acdc_export import verify, Bundle, Pair, export\n"
        "extras = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'sklearn', 'torchvision', 'PIL', 'matplotlib'}\n"
        "print(sorted(extras & set(sys.modules)))"
    )
    assert call(python, "-c", program, cwd=tmp_path).strip() == "[]"


def test_a_missing_extra_is_one_line(python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-m", "acdc_export", "train", "digits"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[0].endswith("is not installed, which this needs.")
    assert "pip install 'acdc-export[train]'" in done.stderr


def test_the_sdist_makes_the_same_wheel(python: Path, checkout: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, checkout)  # the wheel from the sdist
    (wheel,) = tmp_path.glob("*.whl")
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    finds_everything(python, tmp_path)


def test_an_editable_install(python: Path, checkout: Path, tmp_path: Path) -> None:
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", "--editable", checkout)
    finds_everything(python, tmp_path)
    program = "import acdc_export; print(acdc_export.__file__)"
    assert str(checkout) in call(python, "-c", program, cwd=tmp_path)
