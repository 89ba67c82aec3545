"""What users import, and the errors that they catch."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import acdc_export
from acdc_export import errors

ROOT = Path(acdc_export.__file__).parents[1]


def test_every_public_name_is_there_and_documented() -> None:
    for name in acdc_export.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(acdc_export, name)), name
    assert len(set(acdc_export.__all__)) == len(acdc_export.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = acdc_export.nonsense


def test_all_errors_are_in_one_tree_that_is_drawn() -> None:
    classes = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert classes == set(errors.__all__)
    assert errors.__doc__
    for name in classes:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.AcdcExportError)
        assert name in errors.__doc__
        drawn = re.search(rf"── {name}\s+(\d+)", errors.__doc__)
        if drawn:
            assert kind.exit_code == int(drawn[1])


def test_every_module_says_what_it_is_for() -> None:
    for module in pkgutil.walk_packages(acdc_export.__path__, "acdc_export."):
        if module.name != "acdc_export.__main__":
            assert importlib.import_module(module.name).__doc__, module.name
