"""A network as a function: the names of what it takes and gives, whatever its forward returns."""

import json
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from acdc_export.errors import UsageError
from acdc_export.pair import Pair
from acdc_export.training import Unstructured, state
from acdc_export.training.network import Network, names_of

from .test_to_onnx import trained

Answer = namedtuple("Answer", ["hidden", "logits"])


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor
    loss: Tensor | None = None


RETURNED = {
    "dict": lambda h, z: {"hidden": h, "logits": z},
    "ordered dict": lambda h, z: OrderedDict(logits=z, hidden=h),
    "dataclass": Output,
    "named tuple": Answer,
    "nested": lambda h, z: {"deep": {"hidden": h}, "logits": z},
    "with nothing in it": lambda h, z: {"loss": None, "hidden": h, "logits": z},
}


class Returns(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.body, self.head, self.form = nn.Linear(6, 8), nn.Linear(8, 4), form

    def forward(self, x):
        hidden = self.body(x).relu()
        return self.form(hidden, self.head(hidden))


def finished(model, *inputs):
    """A finished run: what the network returns doesn't matter to training."""
    form, model.form = model.form, lambda hidden, logits: logits
    acdc = trained(model, *inputs)
    model.form = form
    return acdc


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", RETURNED)
def test_outputs_keep_the_names_that_they_have(form, tmp_path):
    model = Returns(RETURNED[form])
    pair = finished(model, X).save_pair(tmp_path / "pair", X)
    hidden = "deep.hidden" if form == "nested" else "hidden"
    assert {spec.name: spec.shape for spec in pair.record.outputs} == {hidden: ("batch", 8), "logits": ("batch", 4)}
    assert pair.record.judged_output == "logits"
    session = onnxruntime.InferenceSession(pair.onnx("dense"))
    given = dict(
        zip([value.name for value in session.get_outputs()], session.run(None, {"input": X.numpy()}), strict=True)
    )
    expected = {"logits": model.eval().head(model.body(X).relu()), hidden: model.body(X).relu()}
    for name, value in expected.items():
        np.testing.assert_allclose(given[name], value.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_names_choose_among_the_outputs_and_never_relabel_them(tmp_path):
    acdc = finished(Returns(RETURNED["dict"]), X)
    pair = acdc.save_pair(tmp_path / "turned", X, output_names=["logits", "hidden"])
    assert [(spec.name, spec.shape[1]) for spec in pair.record.outputs] == [("logits", 4), ("hidden", 8)]
    alone = acdc.save_pair(tmp_path / "alone", X, output_names=["logits"])
    assert [spec.name for spec in alone.record.outputs] == ["logits"]
    for names in (["scores", "hidden"], ["logits", "logits"], []):
        with pytest.raises(UsageError, match="calls them hidden, logits"):
            acdc.save_pair(tmp_path / "bad", X, output_names=names)


def test_which_output_is_judged_is_chosen_or_said(tmp_path):
    acdc = finished(Returns(lambda h, z: (h, z)), X)
    with pytest.warns(UserWarning, match="'logits_0' will be judged. Say which with judged_output"):
        assert acdc.save_pair(tmp_path / "first", X).record.judged_output == "logits_0"
    with warnings.catch_warnings(action="error"):
        assert acdc.save_pair(tmp_path / "second", X, judged_output="logits_1").record.judged_output == "logits_1"
    with pytest.raises(UsageError, match="judged_output is 'logit_1'.*did you mean 'logits_1'"):
        acdc.save_pair(tmp_path / "bad", X, judged_output="logit_1")


def test_inputs_by_keyword_keep_their_names(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, ids, *, mask):
            return self.fc(ids * mask)

    class Positional(Two):
        def forward(self, ids, mask):
            return super().forward(ids, mask=mask)

    model = Two()
    acdc = trained(Positional(), X, torch.ones(5, 6))
    acdc._model = model.train(False)
    pair = acdc.save_pair(tmp_path / "pair", {"mask": torch.ones(5, 6), "ids": X})
    assert [spec.name for spec in pair.record.inputs] == ["mask", "ids"]
    reference = pair.reference
    (logits,) = onnxruntime.InferenceSession(pair.onnx("sparse")).run(None, reference.inputs)
    np.testing.assert_allclose(logits, reference.sparse["logits"], rtol=1e-4, atol=1e-5)


class Sharing(nn.Module):
    """Returns a tensor twice, and one of its inputs."""

    def __init__(self):
        super().__init__()
        self.form = None
        self.fc1, self.fc = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        logits = self.fc(self.fc1(x).softmax(1))
        return self.form(None, logits) if self.form is not None else (logits, logits.softmax(1), logits, x)


@pytest.mark.parametrize(
    "names", [None, ["y", "softmax", "linear", "fc"], ["linear_1", "linear", "softmax_1", "softmax"]], ids=str
)
def test_names_of_values_inside_and_tensors_returned_twice_make_a_valid_graph(names, tmp_path):
    acdc = finished(Sharing(), X)
    pair = acdc.save_pair(tmp_path / "pair", X, output_names=names, judged_output=names[0] if names else "logits_0")
    reference = Pair.load(pair.path).reference
    for half in ("sparse", "dense"):
        session = onnxruntime.InferenceSession(pair.onnx(half))
        for spec, value in zip(pair.record.outputs, session.run(None, reference.inputs), strict=True):
            np.testing.assert_allclose(value, reference.outputs(half)[spec.name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"input_names": ["fc1.weight"]}, "'fc1.weight' is to name an input or output, and is the name of a weight"),
        ({"output_names": ["fc.bias"]}, "'fc.bias' is to name"),
        ({"input_names": ["x"], "output_names": ["x"]}, "'x' names an input and an output"),
        ({"input_names": "x"}, "x doesn't name 1 tensor"),
        ({"output_names": [""]}, "doesn't name 1 tensor"),
    ],
)
def test_names_that_cannot_be_are_refused_before_anything_is_written(names, message, tmp_path):
    model = nn.Sequential(OrderedDict(fc1=nn.Linear(6, 8), fc=nn.Linear(8, 4)))
    acdc = trained(model, X)
    if isinstance(names.get("input_names"), str):
        names["input_names"] = "xy"[:1] * 2
        message = "xx doesn't name 1 tensor"
    with pytest.raises(UsageError, match=message):
        acdc.save_pair(tmp_path / "pair", X, **names)
    assert not list(tmp_path.iterdir())


def test_names_are_counted_where_there_are_several():
    assert names_of(None, "input", 1) == ["input"]
    assert names_of(None, "logits", 2) == ["logits_0", "logits_1"]


def test_outputs_that_are_no_tensors_are_named():
    network = Network(Returns(lambda h, z: {"logits": z, "steps": 3}), keywords=False)
    with pytest.raises(UsageError, match="The output steps is int, not a tensor"):
        network({"x": X})


class Versioned(nn.Linear):
    """Keeps its weight times 2 since version 2, and doubles older ones when they are loaded."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if (local_metadata.get("version") or 1) < 2:
            state_dict[prefix + "weight"] = 2 * state_dict[prefix + "weight"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_weights_keep_the_version_of_their_module(tmp_path):
    model = nn.Sequential(Versioned(6, 8), nn.ReLU(), nn.Linear(8, 4))
    pair = trained(model, X).save_pair(tmp_path / "pair", X)
    expected = model.eval()(X).detach().numpy()  # the model is the twin now
    np.testing.assert_allclose(pair.reference.dense["logits"], expected, rtol=1e-5, atol=1e-6)
    model.load_state_dict(state.read(pair.path / "dense.safetensors"))
    np.testing.assert_array_equal(model(X).detach().numpy(), expected)
    with safe_open(pair.path / "dense.safetensors", "np") as file:
        assert json.loads(file.metadata()["torch_metadata"])["0"] == {"version": 2}


def test_layers_whose_weights_are_computed_can_be_copied(tmp_path):
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.nn.utils.weight_norm(head := nn.Linear(8, 4))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), head)
    pair = trained(model, X, pattern=Unstructured(0.5, exclude=("2",))).save_pair(tmp_path / "pair", X)
    np.testing.assert_allclose(pair.reference.dense["logits"], model(X).detach().numpy(), rtol=1e-4, atol=1e-5)
