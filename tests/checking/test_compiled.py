"""A compiled model is code: it is loaded where it was built, or where its bundle is trusted; else it is built anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from acdc_export import check, export, verify
from acdc_export.bundle import Bundle
from acdc_export.checking import LoadedBundle
from acdc_export.cli import app
from acdc_export.config import load_target
from acdc_export.engines import InstalledTarget, environment
from acdc_export.errors import BundleError, ModelRefused, RuntimeUnavailable, UsageError
from acdc_export.files import Fingerprint, sha256
from acdc_export.inspection import inspect
from acdc_export.pair import Pair, write
from acdc_export.progress import SILENT

from ..conftest import fill, record

TOML = """\
name = "compiled"
description = "What it calls a library is a file of JSON; it notes each one that is loaded"

[runtime]
name = "compiled"
python = "host"
compiles = true

[license]
name = "MIT"
url = "https://opensource.org/license/mit"
deployable = true

[graph]
passes = ["fold_batchnorm"]

[precisions.fp32]
tolerance = 1e-3
build = true

[benchmark]
budget = 2
batch_sizes = [4]
gated_batch_size = 4
"""

ENGINE = """\
import json
import os
import shutil
from pathlib import Path

from onnx.reference import ReferenceEvaluator

HERE = Path(__file__).parent


class Unavailable(Exception):
    remedy = "Install one."


def build(model, stem, precision, batch_sizes, batches):
    if (HERE / "lacks").exists():
        raise Unavailable("there is no compiler")
    plan = Path(model).with_suffix(".plan.json")  # what a bundle keeps beside its ONNX
    if plan.is_file():
        shutil.copyfile(plan, stem + ".plan.json")
    else:
        Path(stem + ".plan.json").write_text(json.dumps({"tile": len(list(HERE.glob("built-*")))}))
    (HERE / ("built-%d" % len(list(HERE.glob("built-*"))))).touch()
    shutil.copyfile(model, stem + ".onnx")
    compiler = (HERE / "version").read_text() if (HERE / "version").exists() else "1"
    library = {"onnx": Path(model).read_bytes().hex(), "plan": Path(stem + ".plan.json").read_text(), "by": compiler}
    Path(stem + ".so").write_text(json.dumps(library))
    return stem + ".so"


def deployed(path):
    return [path]


def load(path, batch_size, threads, precision):
    with (HERE / "loaded").open("a") as file:
        file.write(path + "\\n")
    return Model(bytes.fromhex(json.loads(Path(path).read_text())["onnx"]))


class Model:
    def __init__(self, onnx):
        self.evaluator = ReferenceEvaluator(__import__("onnx").load_from_string(onnx))

    def info(self):
        return {"runtime": "compiled", "version": "1"}

    def run(self, inputs):
        return dict(zip(self.evaluator.output_names, self.evaluator.run(None, inputs)))

    def bind(self, inputs):
        return lambda: self.run(inputs)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own: what it records counts."""
    monkeypatch.setenv("ACDC_EXPORT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and the home folder of the machine that made it."""
    folder = tmp_path_factory.mktemp("exported")
    made = write(folder / "pairs" / "tiny", record(), fill)
    write_target(folder / "compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACDC_EXPORT_HOME", str(folder / "home"))
        export(made, str(folder / "compiled"), gates=["sparsity >= 0.5"], out=folder / "bundles")
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_target(tmp_path / "targets" / "compiled")


def write_target(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "target.toml").write_text(TOML)
    (folder / "engine.py").write_text(ENGINE)
    return folder


@pytest.fixture
def bundle(exported: Path, home: Path, tmp_path: Path) -> Path:
    """A bundle on the machine that made it."""
    shutil.copytree(exported / "home", home)
    return shutil.copytree(exported / "bundles" / "tiny-compiled", tmp_path / "bundles" / "tiny-compiled")


@pytest.fixture
def loaded(target: Path) -> Callable[[], list[Path]]:
    """What was loaded since it was last asked for."""

    def since() -> list[Path]:
        file = target / "loaded"
        paths = [Path(line) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return paths

    return since


@pytest.fixture
def elsewhere(bundle: Path, home: Path) -> Path:
    """A bundle that was made on another machine."""
    shutil.rmtree(home)
    return bundle


def statuses(path: Path, target: Path, **options: object) -> tuple[dict[str, str], str]:
    verification = verify(path, target=str(target), **options)  # type: ignore[arg-type]
    return {check.gate: check.status for check in verification.checks}, " ".join(verification.notes)


def test_what_was_built_here_is_loaded(bundle: Path, target: Path, loaded: Callable[[], list[Path]]) -> None:
    assert {path.name for path in bundle.joinpath("model").iterdir()} == {"model.onnx", "model.plan.json", "model.so"}
    found, notes = statuses(bundle, target)
    assert found == dict.fromkeys(("files", "gates, when it was made", "golden outputs, batch 4"), "pass")
    assert loaded() == [bundle / "model" / "model.so"]
    assert "not built here" not in notes


def test_what_was_built_elsewhere_is_built_anew_with_its_plan(
    elsewhere: Path, target: Path, loaded: Callable[[], list[Path]]
) -> None:
    plan = (elsewhere / "model" / "model.plan.json").read_text()
    found, notes = statuses(elsewhere, target)
    assert set(found.values()) == {"pass"}
    (path,) = loaded()
    assert path.name == "model.so"
    assert elsewhere not in path.parents
    assert not path.exists()
    assert "model.so was not built here. What ran was built anew from the bundle's ONNX; it is the same" in notes
    assert (elsewhere / "model" / "model.plan.json").read_text() == plan
    assert Bundle.load(elsewhere).damage() == []
    statuses(elsewhere, target)  # the same file was built here now
    assert loaded() == [elsewhere / "model" / "model.so"]


def test_another_compiler_makes_another_file(elsewhere: Path, target: Path, loaded: Callable[[], list[Path]]) -> None:
    (target / "version").write_text("2")
    for _ in range(2):
        _, notes = statuses(elsewhere, target)
        assert "it is another file than the bundle's" in notes
        assert elsewhere not in loaded()[0].parents


def test_a_bundle_that_is_trusted_by_name_is_loaded(
    elsewhere: Path, target: Path, loaded: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (target / "lacks").touch()  # no compiler is needed
    monkeypatch.chdir(elsewhere.parent)
    for name in (elsewhere, f"./{elsewhere.name}/"):
        _, notes = statuses(elsewhere, target, trust=name)
        assert loaded() == [elsewhere / "model" / "model.so"]
        assert "model.so was not built here. It ran as it is: the bundle is trusted." in notes
    with pytest.raises(UsageError, match=r"--trust bundles: that bundle is not run here\.\nName one of these: .*tiny"):
        verify(elsewhere, target=str(target), trust=["bundles"])


def test_without_a_compiler_both_ways_out_are_named(
    elsewhere: Path, target: Path, loaded: Callable[[], list[Path]]
) -> None:
    (target / "lacks").touch()
    with pytest.raises(RuntimeUnavailable) as caught:
        verify(elsewhere, target=str(target))
    assert caught.value.message.endswith(
        "model.so was not built here, and can't be built anew: compiled: there is no compiler"
    )
    assert caught.value.remedy.startswith("Install one. If you know where it comes from")
    assert f"--trust {elsewhere}" in caught.value.remedy
    assert loaded() == []


def test_an_altered_library_is_not_loaded(bundle: Path, target: Path, loaded: Callable[[], list[Path]]) -> None:
    """Not even where a manifest was made to fit: then it was not built here."""
    library, manifest = bundle / "model" / "model.so", bundle / "manifest.json"
    library.write_text(library.read_text() + " ")
    found, _ = statuses(bundle, target, trust=bundle)
    assert found == {"files": "fail"}
    with pytest.raises(BundleError, match=r"model.so has \d+ bytes instead of"):
        check(bundle, self_test=True, target=str(target), trust=bundle)
    assert loaded() == []
    document = json.loads(manifest.read_text())
    record = Fingerprint(sha256(library), library.stat().st_size)
    document["files"]["model/model.so"] = record.__dict__
    manifest.write_text(json.dumps(document))
    _, notes = statuses(bundle, target)
    assert "What ran was built anew" in notes
    assert bundle not in loaded()[0].parents


def test_its_zeros_are_those_of_the_onnx_beside_it(bundle: Path) -> None:
    (part,) = inspect(bundle).parts
    assert part.title == f"{bundle}, model.so, compiled from model.onnx"
    (weight,) = (weight for weight in part.weights if weight.name == "conv2.weight")
    assert weight.zeros == record().pattern.layers["conv2.weight"].zeros
    assert not part.uncounted


def test_its_hash_is_compared_once_more_before_it_is_loaded(bundle: Path, target: Path, tmp_path: Path) -> None:
    """Whatever was looked at before."""
    installed = InstalledTarget(load_target(str(target)), environment.host())
    loaded = LoadedBundle(Bundle.load(bundle), installed, (0,), trusted=True)
    library = bundle / "model" / "model.so"
    library.write_text(library.read_text().replace("1", "2"))
    with pytest.raises(BundleError, match="model.so was altered .* it is code, and was not loaded"):
        loaded.admit(["sparse"], tmp_path, SILENT)


def test_without_its_onnx_it_can_not_be_built_anew(elsewhere: Path, target: Path) -> None:
    manifest = elsewhere / "manifest.json"
    document = json.loads(manifest.read_text())
    del document["files"]["model/model.onnx"]
    (elsewhere / "model" / "model.onnx").unlink()
    manifest.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"holds no model.onnx, or lists no hash for it"):
        verify(elsewhere, target=str(target))


def test_an_onnx_that_the_compiler_refuses(elsewhere: Path, target: Path) -> None:
    engine = target / "engine.py"
    engine.write_text(engine.read_text().replace("    plan = Path", '    raise ValueError("no Foo")\n    plan = Path'))
    with pytest.raises(ModelRefused, match=r"can't be built anew: .* refused `build`: ValueError: no Foo"):
        verify(elsewhere, target=str(target))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "halves"),
    [
        ({"self_test": True}, {"model.so"}),
        ({"against": "older", "twins": False}, {"model.so"}),
        ({"against": "older"}, {"model.so", "dense.so"}),
        ({"save": "ratios.json"}, {"model.so", "dense.so"}),
    ],
)
def test_a_check_loads_no_other_code_either(
    elsewhere: Path, target: Path, loaded: Callable[[], list[Path]], tmp_path: Path, options: dict[str, object],
    halves: set[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The twins are code too."""
    monkeypatch.chdir(tmp_path)
    (target / "version").write_text("2")  # else all of these files were built here after the first
    shutil.copytree(elsewhere, tmp_path / "older")
    asked = {"target": str(target), "budget": 1, **options}
    finding = check(elsewhere, **asked)  # type: ignore[arg-type]
    paths = loaded()
    assert {path.name for path in paths} == halves
    assert not [path for path in paths if elsewhere in path.parents or tmp_path / "older" in path.parents]
    notes = " ".join(finding.notes)
    assert notes.count("What ran was built anew") == len(halves) * (2 if "against" in options else 1)
    check(elsewhere, **{**asked, "trust": [elsewhere, *([tmp_path / "older"] if "against" in options else [])]})  # type: ignore[arg-type]
    assert {path.parent.parent for path in loaded()} <= {elsewhere, tmp_path / "older"}


def test_the_command_takes_several_names(elsewhere: Path, target: Path) -> None:
    line = ["verify", str(elsewhere), "--target", str(target), "--trust", str(elsewhere), "--trust", "nowhere"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2
    assert "--trust nowhere: that bundle is not run here." in result.output


@pytest.mark.parametrize("broken", ["not a folder", "no home"])
def test_where_nothing_can_be_recorded_it_is_built_anew(
    pair: Pair, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A read-only home stops no export."""
    (tmp_path / "file").touch()
    if broken == "no home":
        monkeypatch.delenv("ACDC_EXPORT_HOME")
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        monkeypatch.setenv("HOME", "relative")
    else:
        monkeypatch.setenv("ACDC_EXPORT_HOME", str(tmp_path / "file"))
    made = export(pair, str(target), gates=["sparsity >= 0.5"], out=tmp_path / "bundles")
    _, notes = statuses(made.path, target)
    assert "What ran was built anew" in notes
