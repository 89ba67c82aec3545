"""Pipelines and targets: all mistakes of a file at once, with the nearest valid name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from acdc_export import config, resources
from acdc_export.errors import ConfigError, UsageError

DIGITS = resources.find("pipelines", "digits").read_text()


@pytest.mark.parametrize("name", resources.names("pipelines"))
def test_built_in_pipelines_are_sound(name: str) -> None:
    pipeline = config.load_pipeline(name)
    assert pipeline.name == name
    assert pipeline.text == resources.find("pipelines", name).read_text()


@pytest.mark.parametrize("name", resources.names("targets"))
def test_built_in_targets_are_sound(name: str) -> None:
    target = config.load_target(name)
    assert target.name == name
    assert target.requirements.is_file() == (target.runtime.python != config.HOST)


def test_all_mistakes_are_told_at_once_with_the_nearest_name() -> None:
    text = (
        DIGITS.replace("batch_size = 64", "batch_sise = 64")
        .replace("sparsity = 0.9\n", "sparsity = 1.9\n")
        .replace('name = "residual_cnn"', "name = 3")
        .replace("speedup >= 1.3", "speedupp >= 1.3")  # meaning is checked beside structure
    )
    with pytest.raises(ConfigError) as caught:
        config.parse_pipeline(text, "mine.toml")
    problems = "\n".join(caught.value.problems)
    assert caught.value.message.startswith("mine.toml: 5 mistakes")
    assert "training.batch_sise: unknown key (did you mean 'batch_size'?)" in problems
    assert "training.batch_size: missing" in problems
    assert "pattern.sparsity: input should be less than 1" in problems
    assert "model.name" in problems
    assert "unknown metric 'speedupp' (did you mean 'speedup'?)" in problems


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"speedup >= 1.3"', '"speedupp >= 1.3"', "unknown metric 'speedupp' (did you mean 'speedup'?)"),
        ('"speedup >= 1.3"', '"speedup > 1.3"', "'<=' or '>=' is missing after 'speedup'"),
        ("gated_batch_size = 16", "gated_batch_size = 4", "4 is not among batch_sizes [1, 16]"),
        ('judge = "digits:test"', 'judge = "digits:train"', "'digits:train' is what the pair is trained on"),
        ('gates = [\n    "sparsity >= 0.9",', "gates = []\nx = [", "judging.gates"),
        ('name = "digits"', 'name = "../digits"', "can't be the name of a folder"),
        ("[model]", "[model", "not valid TOML"),
        ('name = "digits"', 'text = "x"\nname = "digits"', "text: set by the program"),
    ],
)
def test_mistakes_in_meaning(old: str, new: str, problem: str) -> None:
    with pytest.raises(ConfigError, match="mistake") as caught:
        config.parse_pipeline(DIGITS.replace(old, new, 1), "mine.toml")
    assert problem in "\n".join(caught.value.problems)


def test_targets_of_a_pipeline_are_looked_for_in_files_only(tmp_path: Path) -> None:
    """The pipeline that a pair carries may come from another machine, with other targets."""
    text = DIGITS.replace('targets = ["cpu"]', 'targets = ["cup"]')
    assert config.parse_pipeline(text, "a pair").judging.targets == ("cup",)
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"unknown target 'cup' \(did you mean 'cpu'\?\)"):
        config.load_pipeline(str(tmp_path / "mine.toml"))


def test_a_copy_has_the_name_of_its_folder(tmp_path: Path) -> None:
    """A bundle is named after its target: a copy must not pass for the built-in one."""
    resources.copy("targets", "cpu", tmp_path / "mybox")
    assert config.load_target(str(tmp_path / "mybox")).name == "mybox"
    resources.copy("pipelines", "digits", tmp_path / "mine.toml")
    assert config.load_pipeline(str(tmp_path / "mine.toml")).name == "mine"
    shutil.copytree(tmp_path / "mybox", tmp_path / "other")
    with pytest.raises(ConfigError, match="'mybox' is not the name of its folder, 'other'"):
        config.load_target(str(tmp_path / "other"))


def test_a_target_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mybox"
    resources.copy("targets", "cpu", mine)
    text = (mine / "target.toml").read_text()
    text = (
        text.replace("global_average_pool", "global_avg_pool")
        .replace('"static_batch",', "")
        .replace('batch = "each"', "")
    )
    (mine / "target.toml").write_text(text.replace(">=3.8,", "3.8,"))
    text = (mine / "target.toml").read_text()
    text = text.replace('["onnxruntime", ', '["onnxrutime", ').replace('pipeline = "digits"', 'pipeline = "digist"')
    (mine / "target.toml").write_text(
        text.replace("[precisions.fp32]", "[precisions.'a b']").replace('"convinteger"', '"convintegr"')
    )
    (mine / "engine.py").unlink()
    with pytest.raises(ConfigError) as caught:
        config.load_target(str(mine))
    problems = "\n".join(caught.value.problems)
    assert "unknown pass 'global_avg_pool' (did you mean 'global_average_pool'?)" in problems
    assert "graph.micro_batches: they need batch = 'each'" in problems
    assert "runtime.python" in problems
    assert "engine.py is missing" in problems
    assert "unknown target 'onnxrutime' (did you mean 'onnxruntime'?)" in problems
    assert "unknown pipeline 'digist' (did you mean 'digits'?)" in problems
    assert "precisions.a b: 'a b' can't be a part of a folder's name" in problems
    assert "precisions.int8.scheme: unknown scheme 'convintegr' (did you mean 'convinteger'?)" in problems


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "[precisions.fp32]",
            "[parity]\nfp32 = 1e-3\n\n[precisions.fp32]",
            "parity: is now a table for each precision",
        ),
        ('batch = "each"', "parts = [1, 16]\nbatch = 'each'", "graph.parts: is now graph.micro_batches"),
        ('batch = "each"', 'int8 = "qdq"\nbatch = "each"', "graph.int8: is now scheme"),
        ('batch = "each"', "", "graph.batch: the pass 'static_batch' writes a batch size into each file"),
        ('scheme = "convinteger"', "samples = true", "precisions.int8.samples: only `build` calibrates on them"),
        (
            'scheme = "convinteger"',
            'scheme = "convinteger"\nbuild = true\nsamples = true',
            "precisions.int8.samples: the scheme has its own",
        ),
        (
            "gated_batch_size = 16\n",
            'gated_batch_size = 16\ncontrol_precision = "fp23"\n',
            "no precision 'fp23' (did you",
        ),
        ("[runtime]\n", "[runtime]\ncompiles = true\n", "precisions.fp32.build: what compiles builds every precision"),
        ("gates = [", 'requires = "2:5:6"\ngates = [', "requires: "),
        (
            "[precisions.int8]\n",
            '[precisions.int8]\npasses = ["folds"]\n',
            "precisions.int8.passes: unknown pass 'folds'",
        ),
    ],
)
def test_what_a_target_says_of_graphs_and_precisions(tmp_path: Path, old: str, new: str, problem: str) -> None:
    mine = tmp_path / "mybox"
    resources.copy("targets", "cpu", mine)
    text = (mine / "target.toml").read_text()
    assert old in text
    (mine / "target.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        config.load_target(str(mine))
    assert problem in "\n".join(caught.value.problems)


def test_a_target_in_the_hosts_interpreter_needs_no_requirements(tmp_path: Path) -> None:
    mine = tmp_path / "mybox"
    resources.copy("targets", "onnxruntime", mine)
    text = (mine / "target.toml").read_text()
    (mine / "requirements.txt").unlink()
    with pytest.raises(ConfigError, match=r"requirements\.txt is missing"):
        config.load_target(str(mine))
    (mine / "target.toml").write_text(text.replace('python = ">=3.10,<3.15"', 'python = "host"'))
    assert config.load_target(str(mine)).runtime.python == config.HOST


def test_a_name_is_a_built_in_and_a_path_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(resources.find("targets", "cpu"), tmp_path / "mybox")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="Unknown target 'mybox'"):  # code in the working directory is not a built-in
        resources.find("targets", "mybox")
    assert resources.find("targets", "./mybox") == Path("mybox")
    with pytest.raises(UsageError, match=r"did you mean 'cpu'\?"):
        resources.find("targets", "cpuu")
    with pytest.raises(UsageError, match="There is no pipeline at nowhere.toml"):
        resources.find("pipelines", "nowhere.toml")


def test_copy_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "digits.toml").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        resources.copy("pipelines", "digits", tmp_path / "digits.toml")
    assert (tmp_path / "digits.toml").read_text() == "mine"


SOUND_SCHEDULES = [
    'published = "cifar-dense13"',
    "phases = [3, 2, 2, 4]",
    'phases = [30, 20, 20, 40]\nunit = "step"',
    "warmup = 1\nsparse = 1\ndense = 1\ncycles = 0\nlast_sparse = 1\nlast_dense = 1\nfinal_sparse = 1",
]


@pytest.mark.parametrize("schedule", SOUND_SCHEDULES)
def test_schedules_have_three_forms(schedule):
    config.parse_pipeline(_with("schedule", schedule), "mine.toml")


@pytest.mark.parametrize(
    ("table", "lines", "problem"),
    [
        ("schedule", "", "schedule: no phases are given; it takes one of published, phases, or warmup"),
        ("schedule", 'published = "cifar-freq20"\nphases = [1, 1]', "schedule: published and phases are given"),
        ("schedule", "warmup = 3\nsparse = 2", "schedule.final_sparse: missing"),
        ("schedule", "phases = [3, 2, 2]", "schedule.phases: 3 phases; they begin with a dense one"),
        ("schedule", "phases = [3, 0]", "schedule.phases.1: input should be greater than 0"),
        ("schedule", 'published = "imagenet-90"', "schedule.published: input should be 'imagenet-100', "),
        (
            "schedule",
            'published = "imagenet-100"\nunit = "step"',
            "schedule.unit: the published schedules",
        ),
        ("pattern", "", "pattern.sparsity: missing"),
        ("pattern", 'kind = "2:4"\nsparsity = 0.5', "pattern.sparsity: 2:4 has none; its sparsity is its own"),
        ("pattern", 'kind = "4:2"', "pattern.kind: 4 of every 2 weights can't be kept"),
        (
            "pattern",
            'kind = "blocks4"\nsparsity = 0.5',
            "pattern.kind: there is no pattern 'blocks4' (did",
        ),
        ("pattern", 'kind = "block1"\nsparsity = 0.5', "pattern.kind: there is no pattern 'block1'"),
        ("pattern", 'sparsity = 0.5\nexclude_types = ["linear"]', "pattern.exclude_types.0: input should be 'Linear'"),
        (
            "pattern",
            "sparsity = 0.5\noverrides = { head = 1.0 }",
            "pattern.overrides.head: input should be less",
        ),
    ],
)
def test_unsound_schedules_and_patterns_are_told(table, lines, problem):
    with pytest.raises(ConfigError) as caught:
        config.parse_pipeline(_with(table, lines), "mine.toml")
    assert any(found.startswith(problem) for found in caught.value.problems), caught.value.problems


def _with(table, lines):
    """The pipeline `digits` with these lines as the whole of a table."""
    text = (resources.root("pipelines") / "digits.toml").read_text()
    before, _, rest = text.partition(f"[{table}]")
    after = rest[rest.index("\n[") :]
    return f"{before}[{table}]\n{lines}\n{after}"
