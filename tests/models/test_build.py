import sys

import pytest

from acdc_export.errors import UsageError
from acdc_export.models import build

ARGUMENTS = {"channels": 1, "width": 8, "blocks": 2, "classes": 10}


def test_unknown_models_are_refused():
    with pytest.raises(UsageError, match=r"did you mean 'residual_cnn'\?"):
        build("residual_cn", {})
    with pytest.raises(UsageError, match=r"can't be imported.*No module named 'nowhere'"):
        build("nowhere:net", {})
    with pytest.raises(UsageError, match=r"no callable 'Linaer'.*did you mean 'Linear'"):
        build("torch.nn:Linaer", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 8}, r"'widht' is unknown \(did you mean 'width'\?\)"),
        ({"width": None}, "'width' is missing"),
        ({"width": 0}, "width is 0"),
        ({"width": "64"}, "width is '64'"),
        ({"blocks": True}, "blocks is True"),
        ({"classes": 2.5}, "classes is 2.5"),
        ({"stem_stride": 0}, "stem_stride is 0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    merged = {**ARGUMENTS, **change}
    arguments = {key: value for key, value in merged.items() if value is not None}
    with pytest.raises(UsageError, match=message):
        build("residual_cnn", arguments)


def test_a_model_of_ones_own_comes_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_nets_of_test_models.py").write_text(
        "from torch import nn\n"
        "def small(width, **more):\n    return nn.Linear(width, 2)\n"
        "def broken():\n    raise ValueError('no weights\\nhere')\n"
        "def other():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    name = "my_nets_of_test_models"
    assert build(f"{name}:small", {"width": 4, "extra": 1}).in_features == 4
    assert sys.path == path
    with pytest.raises(UsageError, match="'width' is missing"):
        build(f"{name}:small", {})
    with pytest.raises(UsageError, match="ValueError: no weights") as caught:
        build(f"{name}:broken", {})
    assert str(caught.value).count("\n") == 1
    with pytest.raises(UsageError, match=r"is int, not a torch\.nn\.Module"):
        build(f"{name}:other", {})
