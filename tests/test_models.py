import sys

import pytest
import torch
from torch import nn

from acdc_export.errors import UsageError
from acdc_export.models import build

ARGUMENTS = {"channels": 1, "width": 8, "blocks": 2, "classes": 10}


def test_residual_cnn_halves_the_resolution_once():
    model = build("residual_cnn", ARGUMENTS).eval()
    seen = []
    model.stage2.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert seen == [(3, 16, 4, 4)]
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 2 + 2 * 2 * 2
    assert convolutions[0] == "stem.0"


def test_a_residual_block_leads_its_input_around():
    model = build("residual_cnn", ARGUMENTS).eval()
    block = model.stage1[0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x)


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
