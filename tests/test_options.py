"""Options are written once: functions and commands take the same, and say the same of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from acdc_export import compare, export, run, verify, workflow
from acdc_export.cli import app
from acdc_export.data import Data
from acdc_export.errors import UsageError
from acdc_export.keywords import described
from acdc_export.options import (
    BundleOptions,
    CheckOptions,
    CompareOptions,
    EngineOptions,
    ExportOptions,
    RunOptions,
    TrainOptions,
)

CLASSES = [BundleOptions, CheckOptions, CompareOptions, EngineOptions, ExportOptions, RunOptions, TrainOptions]
FUNCTIONS = [
    (workflow.check, CheckOptions),
    (workflow.compare, CompareOptions),
    (workflow.export, ExportOptions),
    (workflow.run, RunOptions),
    (workflow.train, TrainOptions),
    (workflow.verify, BundleOptions),
]
COMMANDS = [("check", CheckOptions), ("run", RunOptions), ("train", TrainOptions), ("verify", BundleOptions)]


def parameters(verb: str) -> dict[str, Any]:
    """What a command takes, by the names of its flags."""
    command: Any = typer.main.get_command(app)
    command = command.commands[verb] if verb else command
    return {flag: parameter for parameter in command.params for flag in parameter.opts if flag.startswith("--")}


@pytest.mark.parametrize("options", CLASSES)
def test_each_option_has_a_meaning_that_is_a_sentence(options: type) -> None:
    for entry in described(options).values():
        assert entry.option.meaning.endswith((".", "?")), entry.name
        assert "--" not in entry.option.meaning, entry.name


def test_a_class_tells_its_own_options_first() -> None:
    assert list(described(ExportOptions))[:2] == ["target", "precision"]
    assert list(described(ExportOptions))[-3:] == ["accept_licenses", "ask", "progress"]


@pytest.mark.parametrize(("function", "options"), FUNCTIONS)
def test_a_function_takes_the_options_of_its_class(function: Callable[..., Any], options: type) -> None:
    first, *rest = inspect.signature(function).parameters.values()
    assert first.default is first.empty
    assert {entry.name: entry.default for entry in rest} == {
        entry.name: entry.default for entry in described(options).values()
    }
    text = inspect.getdoc(function) or ""
    assert "\n\nOptions:\n" in text
    for entry in described(options).values():
        assert f"    {entry.name}: {entry.option.meaning[:40]}" in text
    assert text.index("Options:") < text.index("Raises:")


def test_a_misspelt_option_is_a_mistake_with_the_nearest_name() -> None:
    with pytest.raises(UsageError) as caught:
        export("nowhere", precison="int8")  # type: ignore[call-arg]
    assert caught.value.message == "export has no option 'precison' (did you mean 'precision'?)."
    assert caught.value.remedy.startswith("Its options are target, precision, judging,")
    with pytest.raises(UsageError, match=r"verify has no option 'trheads' \(did you mean 'threads'\?\)"):
        verify("nowhere", trheads=1)  # type: ignore[call-arg]


def test_a_call_without_its_thing_fails_as_python_does() -> None:
    with pytest.raises(TypeError, match=r"export\(\): missing a required argument: 'pair'"):
        export()  # type: ignore[call-arg]


def test_the_first_argument_may_be_named(tmp_path: Path) -> None:
    named: Callable[..., Any] = compare
    with pytest.raises(Exception, match="There is no pair at"):
        named(pair=tmp_path / "nowhere", targets="cpu")


def test_what_is_given_in_several_forms_is_held_in_one() -> None:
    options = CompareOptions("cpu", gates="speedup >= 1.8", threads=1, out="here", batch_sizes=iter([1, 16]))
    assert options.targets == ("cpu",)
    assert options.gates == ("speedup >= 1.8",)
    assert options.threads == (1,)
    assert options.out == Path("here")
    assert options.batch_sizes == (1, 16)
    again = replace(options, threads=None)
    assert again.threads == ()
    assert again.batch_sizes == (1, 16)
    assert CompareOptions().targets == ("all",)
    assert RunOptions().targets == ()
    with pytest.raises(FrozenInstanceError):
        options.out = Path("there")  # type: ignore[misc]


def test_data_are_read_once_from_whatever_is_given() -> None:
    batches = [(np.zeros((2, 3), np.float32), np.zeros(2, np.int64))]
    options = ExportOptions(data="digits:test", calibrate=iter(batches))
    assert isinstance(options.data, Data)
    assert options.data.spec == "digits:test"
    assert isinstance(options.calibrate, Data)
    assert len(list(options.calibrate.batches(2))) == len(list(options.calibrate.batches(2))) == 1
    assert replace(options, precision="int8").data is options.data


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"budget": 0}, "--budget 0: that is no time to measure in."),
        ({"threads": [1, 999]}, "--threads 999: this machine has"),
        ({"data": "digits:trian"}, "did you mean 'train'"),
    ],
)
def test_what_can_not_be_meant_is_told_before_anything_is_done(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        run("nowhere", **asked)
    assert said in caught.value.message


def test_a_check_is_against_one_thing() -> None:
    assert CheckOptions(self_test=True).kind == "self-test"
    assert CheckOptions(save="ratios.json").kind == "save"
    with pytest.raises(UsageError, match="A check is against one thing"):
        CheckOptions(self_test=True, against="bundles/old")
    with pytest.raises(UsageError, match="Nothing was named to check against"):
        CheckOptions()
    with pytest.raises(UsageError, match="--data goes with --against only"):
        CheckOptions(self_test=True, data="digits:test")


@pytest.mark.parametrize(("verb", "options"), [("", CompareOptions), *COMMANDS])
def test_a_command_takes_the_options_of_its_class_in_their_order(verb: str, options: type) -> None:
    taken = parameters(verb)
    flags = [
        entry.option.flag or "--" + entry.name.replace("_", "-")
        for entry in described(options).values()
        if entry.option.cli
    ]
    assert [flag for flag in taken if flag in flags] == flags
    for entry, flag in zip((entry for entry in described(options).values() if entry.option.cli), flags, strict=True):
        assert taken[flag].help.startswith(entry.option.meaning)
        assert taken[flag].multiple == entry.repeats
        assert taken[flag].default == (None if entry.repeats else entry.default)


def test_only_what_can_not_be_written_is_left_to_python() -> None:
    assert [entry.name for entry in described(RunOptions).values() if not entry.option.cli] == [
        "judging",
        "ask",
        "progress",
    ]


def test_run_takes_all_that_the_export_takes() -> None:
    assert set(parameters("")) - set(parameters("run")) == {"--pair", "--version"}


def test_what_a_command_is_given_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def fake(pipeline: str, **options: Any) -> Any:
        given.update(options, pipeline=pipeline)
        raise UsageError("Seen.", "Go on.")

    monkeypatch.setattr(workflow, "run", fake)
    line = (
        "run digits --target cpu --target ./mine --precision int8 --calibrate digits:train --keep-fp32 head "
        "--threads 1 --threads 2 --batch-size 3 --runs there --budget 4 --gate speedup>=2 --require-deployable "
        "--accept-license deepsparse"
    )
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 2, result.output
    assert {name: value for name, value in given.items() if name not in ("ask", "progress")} == {
        "pipeline": "digits", "targets": ["cpu", "./mine"], "precisions": ["int8"], "calibrate": "digits:train",
        "keep_fp32": ["head"], "batch_sizes": [3], "threads": [1, 2], "runs": Path("there"), "budget": 4.0,
        "gates": ["speedup>=2"], "require_deployable": True, "accept_licenses": ["deepsparse"],
        "out": Path("bundles"),
    }  # fmt: skip
