import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from acdc_export.errors import OutputError, TrainingError, UsageError
from acdc_export.pair import Pair
from acdc_export.training import ACDC, Schedule, Unstructured, to_onnx

SCHEDULE = Schedule.alternating(warmup=1, sparse=1, dense=1, cycles=0, last_sparse=1, last_dense=1, final_sparse=1)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.drop(self.body(self.stem(x)).relu().mean((2, 3))))


def trained(model, *inputs, pattern=None, **metrics):
    """A finished run over `model`: a step an epoch, towards nothing in particular."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    acdc = ACDC(model, optimizer, schedule=SCHEDULE, pattern=pattern or Unstructured(0.75))
    model.train()
    for _ in acdc.epochs():
        optimizer.zero_grad()
        outputs = model(*inputs)
        (outputs if isinstance(outputs, torch.Tensor) else outputs[0]).square().mean().backward()
        optimizer.step()
        acdc.record(**metrics)
    return acdc


def images(count):
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run():
    torch.manual_seed(0)
    model = Network()
    return model, trained(model, images(16), pattern=Unstructured(0.75, exclude=("stem.*",)), accuracy=0.5)


@pytest.fixture(scope="module")
def pair(run, tmp_path_factory):
    _, acdc = run
    path = tmp_path_factory.mktemp("pairs") / "small"
    return acdc.save_pair(path, (images(70),), pipeline="name = 'x'", seed=7)


def test_the_pair_says_what_it_is(pair):
    loaded = Pair.load(pair.path)
    record = loaded.record
    assert loaded == pair
    assert (record.name, record.seed, record.pipeline) == ("small", 7, "name = 'x'")
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*record.inputs, *record.outputs)] == [
        ("input", "float32", ("batch", 1, 6, 6)),
        ("logits", "float32", ("batch", 5)),
    ]
    layers = {name: (layer.zeros, layer.total) for name, layer in record.pattern.layers.items()}
    assert set(layers) == {"body.weight", "head.weight"}
    assert sum(zeros for zeros, _ in layers.values()) == 462  # 0.75 * (8*8*9 + 8*5)
    assert record.metrics == {"sparse": {"accuracy": 0.5}, "dense": {"accuracy": 0.5}}
    assert [phase.kind for phase in record.history.phases] == ["dense", "sparse", "dense", "sparse"]
    assert record.tools["torch"] == torch.__version__
    assert set(record.tools) == {"acdc-export", "torch", "onnx"}


@pytest.mark.parametrize("half", ["sparse", "dense"])
def test_the_graph_computes_what_the_network_does_for_any_batch(run, pair, half):
    session = onnxruntime.InferenceSession(pair.onnx(half))
    module = Network().eval()
    module.load_state_dict(load_file(pair.path / f"{half}.safetensors"))
    for count in (1, 5, 64):
        with torch.no_grad():
            expected = module(images(70)[:count]).numpy()
        (outputs,) = session.run(None, {"input": images(70)[:count].numpy()})
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    reference = pair.reference
    np.testing.assert_array_equal(reference.inputs["input"], images(70)[:64].numpy())
    np.testing.assert_allclose(getattr(reference, half)["logits"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("half", ["sparse", "dense"])
def test_the_graphs_weights_are_the_state_dict(pair, half):
    model = onnx.load(pair.onnx(half))
    onnx.checker.check_model(model, full_check=True)
    initializers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    state = load_file(pair.path / f"{half}.safetensors")
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(initializers[name], value.numpy(), err_msg=name)
    zeros = {name: int((state[name] == 0).sum()) for name in pair.record.pattern.layers}
    recorded = {name: layer.zeros for name, layer in pair.record.pattern.layers.items()}
    assert zeros == (recorded if half == "sparse" else dict.fromkeys(recorded, 0))


def test_the_graph_is_canonical(pair):
    model = onnx.load(pair.onnx("sparse"))
    assert [node.op_type for node in model.graph.node] == [
        "Conv", "BatchNormalization", "Relu", "Conv", "Relu", "ReduceMean", "Gemm",
    ]  # fmt: skip
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", 1, 6, 6,
    ]  # fmt: skip


def test_nothing_names_the_machine_that_wrote_it(pair):
    for file in pair.path.iterdir():
        content = file.read_bytes()
        for trace in (b"site-packages", b"test_to_onnx", b"/home", b"/tmp", b"forward"):
            assert trace not in content, (file.name, trace)


def test_one_row_is_enough_and_exporting_is_silent_and_touches_nothing(run, tmp_path, capfd):
    model, acdc = run
    model.drop.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pair = acdc.save_pair(tmp_path / "pair", images(1).numpy())
    assert capfd.readouterr() == ("", "")
    assert pair.record.inputs[0].shape[0] == "batch"
    session = onnxruntime.InferenceSession(pair.onnx("sparse"))
    assert session.run(None, {"input": images(5).numpy()})[0].shape == (5, 5)
    assert model.training
    assert not model.drop.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_foreign_folder_is_refused(run, tmp_path):
    (tmp_path / "mine.txt").write_text("thesis")
    with pytest.raises(OutputError, match="not a folder of ours"):
        run[1].save_pair(tmp_path, images(3))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_several_inputs_and_outputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 6), nn.Linear(5, 6)

        def forward(self, left, right):
            both = self.left(left) + self.right(right)
            return both, both.softmax(1)

    inputs = (torch.randn(4, 4), torch.randn(4, 5))
    acdc = trained(Two(), *inputs)
    names = {"input_names": ["left", "right"], "output_names": ["y", "p"]}
    pair = acdc.save_pair(tmp_path / "named", inputs, **names, judged_output="y")
    reference = Pair.load(pair.path).reference
    assert (set(reference.inputs), set(reference.sparse)) == ({"left", "right"}, {"y", "p"})
    y, p = onnxruntime.InferenceSession(pair.onnx("sparse")).run(["y", "p"], reference.inputs)
    np.testing.assert_allclose(y, reference.sparse["y"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(p, reference.sparse["p"], rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match="doesn't name 2 different tensors"):
        acdc.save_pair(tmp_path / "bad", inputs, input_names=["left", "left"])


def test_a_linear_on_three_axes_keeps_its_weight_an_initializer(tmp_path):
    # More than 512 x 512, where onnxscript stops folding most other things.
    acdc = trained(nn.Sequential(nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 3)), torch.randn(4, 7, 600))
    pair = acdc.save_pair(tmp_path / "pair", torch.randn(4, 7, 600))
    graph = onnx.load(pair.onnx("sparse")).graph
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    multiplied = [weights[node.input[1]] for node in graph.node if node.op_type == "MatMul"]
    assert [weight.shape for weight in multiplied] == [(600, 600), (600, 3)]
    zeros = [layer.zeros for layer in pair.record.pattern.layers.values()]
    assert [int((weight == 0).sum()) for weight in multiplied] == zeros


def test_half_precision_is_widened_without_rounding(tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "_export", lambda network, inputs, record, path: path.touch())
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).bfloat16()
    inputs = torch.randn(4, 8).bfloat16()
    pair = trained(model, inputs).save_pair(tmp_path / "pair", inputs)
    assert pair.record.inputs[0].dtype == pair.record.outputs[0].dtype == "float32"
    state = load_file(pair.path / "dense.safetensors")
    assert state["0.weight"].dtype == torch.float32
    assert torch.equal(state["0.weight"], model[0].weight.float())
    np.testing.assert_array_equal(pair.reference.inputs["input"], inputs.float().numpy())


class Branch(nn.Linear):
    def forward(self, x):
        return super().forward(x) if self.bias.sum() > 0 else super().forward(-x)


class FixedBatch(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.zeros(3, 1)


class BatchLast(nn.Linear):
    def forward(self, x):
        return super().forward(x).T


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Branch, "can't be exported to ONNX: .*data-dependent"),
        (FixedBatch, "depend on the batch that it is in: for a batch of one, the output logits"),
        (BatchLast, "not a tensor with the batch as its first axis"),
    ],
)
def test_models_that_are_no_graph_are_refused_in_two_lines(kind, message, tmp_path):
    acdc = trained(kind(8, 4), torch.randn(3, 8))
    with pytest.raises(UsageError, match=message) as caught:
        acdc.save_pair(tmp_path / "pair", torch.randn(3, 8))
    assert str(caught.value).count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_bad_example_inputs_are_refused(run, tmp_path):
    _, acdc = run
    for inputs, message in [
        (images(0), "or have none"),
        ((images(3), images(2)), "same number of rows"),
        ((images(3), images(3)), "can't take the example inputs"),
        ((images(3)[:, :, 0],), "can't take the example inputs"),
        (("x",), "is str"),
    ]:
        with pytest.raises(UsageError, match=message):
            acdc.save_pair(tmp_path / "pair", inputs)
    with pytest.raises(TrainingError, match="not finite"):
        acdc.save_pair(tmp_path / "pair", torch.full((2, 1, 6, 6), float("nan")))
    assert not list(tmp_path.iterdir())


def test_the_document_is_plain_json(pair):
    document = json.loads((pair.path / "pair.json").read_text())
    assert document["pattern"]["sparsity"] == 0.75
    assert document["created"].endswith("+00:00")
