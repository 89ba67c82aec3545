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
from acdc_export import export, resources
from acdc_export.engines import built_here
from acdc_export.pair import Pair

from .test_workflow import quick_target

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


def test_the_wheel_carries_the_compilers_c(python: Path, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; import acdc_export\n"
        "folder = Path(acdc_export.__file__).parent / 'native' / 'c'\n"
        "print(*sorted(path.name for path in folder.iterdir()))"
    )
    written = sorted(path.name for path in (ROOT / "acdc_export" / "native" / "c").iterdir())
    assert call(python, "-c", program, cwd=tmp_path).split() == written
    assert {Path(name).suffix for name in written} >= {".c", ".h"}


def test_the_base_runs_a_compiled_library(python: Path, pair: Pair, tmp_path: Path) -> None:
    """It loads what was built here or is trusted. To build it anew takes more, and the error says what."""
    target = quick_target(
        tmp_path / "native", "native", ('["onnxruntime", "openvino"]', "[]"), ('"speedup.vs_control >= 1.0",', "")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built_here, "home", lambda: tmp_path / "home")
        export(pair, target, gates=["sparsity >= 0.5"], budget=2, out=tmp_path / "bundles")

    def verify(home: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "acdc_export", "verify", "bundles/tiny-native", *options]
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={**variables, "ACDC_EXPORT_HOME": str(tmp_path / home)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert verify("home").returncode == 0
    refused = verify("another")
    assert refused.returncode == 3
    assert "can't be built anew: native: onnx is not installed, which compiling needs." in refused.stderr
    assert "pip install 'acdc-export[export]'" in refused.stderr
    assert "--trust bundles/tiny-native" in refused.stderr
    assert verify("another", "--trust", "bundles/tiny-native").returncode == 0


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
