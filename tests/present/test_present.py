"""The face of the room: any record goes in, and nothing heavy comes with it."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from acdc_export import present

from ..checking import examples as check_examples
from . import comparison_examples
from .examples import example


@pytest.mark.parametrize("name", ["document", "markdown"])
def test_the_functions_are_not_hidden_by_modules_of_the_same_names(name: str) -> None:
    module = importlib.import_module(f"acdc_export.present.{name}")
    assert callable(getattr(present, name))
    assert module is sys.modules[f"acdc_export.present.{name}"]


@pytest.mark.parametrize("record", [example(), comparison_examples.example(), check_examples.example()])
def test_all_ways_to_show_it_have_the_headline(record: object, capsys: pytest.CaptureFixture[str]) -> None:
    headline = present.document(record).headline
    assert present.text(record).startswith(headline)
    assert present.markdown(record).startswith(f"# {headline}\n")
    assert present.markdown(record, level=3).startswith(f"### {headline}\n")
    present.show(record)
    assert capsys.readouterr().out == present.text(record) + "\n"


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(TypeError, match=r"builtins.dict is no record"):
        present.document({})


def test_importing_it_brings_neither_rich_nor_matplotlib() -> None:
    program = "import sys, acdc_export.present; print({'rich', 'matplotlib'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
