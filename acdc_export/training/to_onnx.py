"""Both halves of a finished run as a pair: the only place where torch meets ONNX."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import pair
from ..errors import TrainingError, TrainingWarning, UsageError
from ..records.history import EpochRecord, History, PhaseRecord
from ..version import __version__
from .flops import Unknown, cost, count
from .pattern import Pattern
from .schedule import Unit

OPSET = 18  # the oldest that torch's exporter writes without converting: most runtimes take it
REFERENCE_ROWS = 64
_BATCH = "batch"


def write_pair(
    path: Path,
    model: nn.Module,
    sparse: Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
    example_inputs: Sequence[Any] | Tensor,
    *,
    pattern: Pattern,
    pruned: Sequence[str],
    left_dense: Mapping[str, str],
    unit: Unit,
    phases: Sequence[PhaseRecord],
    epochs: Sequence[EpochRecord],
    metrics: dict[str, dict[str, float]],
    name: str | None = None,
    pipeline: str | None = None,
    seed: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> pair.Pair:
    """Write the pair of `model` with the state dicts `sparse` and `dense` to the folder `path`.

    `model` is copied, not touched. Weights and inputs of 16 bits are widened to float32, which changes none.

    Args:
        pruned: names of the weights that `pattern` prunes, in `sparse`.
        left_dense: the layers that it doesn't, by module name, and why.
        phases, epochs: what the run was like, in `unit`s.

    Raises:
        UsageError: inputs or names that don't fit the model, or a model that can't be exported.
        TrainingError: outputs that are not finite.
        OutputError: the folder can't be written.
        PairError: the weights make no sound pair.
    """
    inputs = _inputs(example_inputs, input_names)
    states = {"sparse": _portable(sparse), "dense": _portable(dense)}
    modules = {half: _module(model, state) for half, state in states.items()}
    logits = {half: _logits(module, inputs, output_names) for half, module in modules.items()}
    record = pair.Record(
        name=name or path.name,
        inputs=_specs(inputs),
        outputs=_specs(logits["sparse"]),
        pattern=pair.PatternRecord(
            kind=pattern.kind,
            scope=pattern.scope,
            sparsity=pattern.sparsity,
            layers={key: _count(states["sparse"][key]) for key in pruned},
            left_dense=dict(left_dense),
        ),
        reference=pair.ReferenceRecord(f"PyTorch {torch.__version__}, eager"),
        history=_history(phases, unit, epochs, {key: states["dense"][key] for key in pruned}, modules["dense"], inputs),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        pipeline=pipeline,
        seed=seed,
        metrics=metrics,
        tools={"acdc-export": __version__, "torch": torch.__version__, "onnx": version("onnx")},
    )

    def fill(folder: Path) -> None:
        arrays = {f"input.{key}": tensor.numpy() for key, tensor in inputs.items()}
        for half, module in modules.items():
            _export(module, inputs, record, folder / f"{half}.onnx")
            save_file(states[half], folder / f"{half}.safetensors")
            arrays |= {f"{half}.{key}": tensor.numpy() for key, tensor in logits[half].items()}
        np.savez(folder / "reference.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes no **arrays

    return pair.write(path, record, fill)


def _history(
    phases: Sequence[PhaseRecord],
    unit: Unit,
    epochs: Sequence[EpochRecord],
    twin: Mapping[str, Tensor],
    module: nn.Module,
    inputs: Mapping[str, Tensor],
) -> History:
    """The run, with what the pruned weights of the twin hold, and the cost where it can be counted."""
    totals = {key: weight.numel() for key, weight in twin.items()}
    nonzeros = {key: int(weight.count_nonzero()) for key, weight in twin.items()}
    try:
        flops = cost(count(module, [*inputs.values()]), phases, nonzeros)
    except Unknown as error:
        warnings.warn(f"The FLOPs of this network are not known: {error}.", TrainingWarning, stacklevel=4)
        flops = None
    return History(tuple(phases), unit, tuple(epochs), flops, totals=totals, twin_nonzeros=nonzeros)


# ------------------------------------------------------------------------------------------------ torch's side


def _inputs(example_inputs: Sequence[Any] | Tensor | NDArray[Any], names: Sequence[str] | None) -> dict[str, Tensor]:
    """The reference inputs by name: copies on the CPU, of at most 64 rows."""
    if isinstance(example_inputs, Tensor | np.ndarray):
        example_inputs = (example_inputs,)
    tensors = []
    for value in example_inputs:
        if not isinstance(value, Tensor | np.ndarray):
            raise UsageError(
                f"An example input is {type(value).__name__}; arrays and tensors are inputs of a network.",
                "Give one tensor for each argument of the model's forward, such as example_inputs=(x,).",
            )
        tensor = torch.as_tensor(value).detach()[:REFERENCE_ROWS].to("cpu", copy=True).contiguous()
        tensors.append(tensor.float() if tensor.is_floating_point() else tensor)
    rows = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(rows) != 1 or 0 in rows:
        raise UsageError(
            "The example inputs don't have the same number of rows, or have none.",
            "Give real samples, with the batch as the first axis of every input.",
        )
    return dict(zip(_names(names, "input", len(tensors)), tensors, strict=True))


def _names(given: Sequence[str] | None, default: str, count: int) -> list[str]:
    """What the graph's inputs or outputs are called."""
    if given is None:
        return [default] if count == 1 else [f"{default}_{index}" for index in range(count)]
    if len(given) != count or len(set(given)) != count:
        raise UsageError(
            f"{list(given)} doesn't name {count} {'tensor' if count == 1 else 'different tensors'}.",
            "Give one name for each of the model's inputs or outputs, or leave the names out.",
        )
    return list(given)


def _portable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it is stored: each tensor with memory of its own, floats as float32."""
    return {
        name: (value.float() if value.is_floating_point() else value).clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _module(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model on the CPU, in eval mode, with the weights `state`."""
    try:
        module = copy.deepcopy(model)
    except Exception as error:  # whatever a user's modules hold
        raise UsageError(
            f"The model can't be copied: {_cause(error)}.", "Keep what can't be copied outside of the model."
        ) from error
    module = module.to("cpu").float().eval()
    module.load_state_dict({**module.state_dict(), **state})
    return module


def _logits(module: nn.Module, inputs: Mapping[str, Tensor], names: Sequence[str] | None) -> dict[str, Tensor]:
    """What the module gives for the reference inputs, by the names of the outputs."""
    try:
        with torch.no_grad():
            outputs = pytree.tree_leaves(module(*inputs.values()))
    except Exception as error:
        raise UsageError(
            f"The model can't take the example inputs: {_cause(error)}.",
            "Give one tensor for each argument of its forward, as in training.",
        ) from error
    rows = len(next(iter(inputs.values())))
    for output in outputs:
        if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != rows:
            raise UsageError(
                "An output of the model is not a tensor with the batch as its first axis.",
                "Export a module whose forward returns its logits, one row for each row of the inputs.",
            )
        if not output.isfinite().all():
            raise TrainingError(
                "The outputs of a half are not finite on the example inputs.",
                "Look for NaN in these inputs; if there is none, train with a lower learning rate.",
            )
    keys = _names(names, "logits", len(outputs))
    return {key: output.detach().contiguous() for key, output in zip(keys, outputs, strict=True)}


def _specs(tensors: Mapping[str, Tensor]) -> tuple[pair.TensorSpec, ...]:
    return tuple(
        pair.TensorSpec(name, str(tensor.numpy().dtype), (_BATCH, *tensor.shape[1:]))
        for name, tensor in tensors.items()
    )


def _count(weight: Tensor) -> pair.LayerCount:
    return pair.LayerCount(zeros=int((weight == 0).sum()), total=weight.numel())


# ------------------------------------------------------------------------------------------------- ONNX's side


def _export(module: nn.Module, inputs: Mapping[str, Tensor], record: pair.Record, path: Path) -> None:
    """Write `module` as one ONNX file, with a symbolic batch, and its initializers named as in the state dict."""
    # Export takes sizes 0 and 1 for constants.
    rows = tuple(tensor[:1].expand(3, *tensor.shape[1:]).contiguous() for tensor in inputs.values())
    batch = torch.export.Dim(_BATCH)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                rows,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in record.inputs],
                output_names=[spec.name for spec in record.outputs],
                dynamic_shapes=tuple({0: batch} for _ in rows),
                # Its optimizer folds batch norms into weights, which then are not the state dict's any more.
                optimize=False,
                verbose=False,
            )
            assert program is not None
            graph = program.model
            _tidy(graph)
    except Exception as error:  # torch.export, the converter and the tidying each have many of their own
        raise UsageError(
            f"The model can't be exported to ONNX: {_cause(error)}.",
            "Its forward has to be a graph of tensor operations for every batch size: no branches on values, no "
            "loops over a data-dependent count, no fixed batch size.",
        ) from error
    _check_signature(graph, record)
    _save(graph, path)


def _tidy(graph: ir.Model) -> None:
    """What torch's own optimizer does, without the folding of batch norms; and nothing that names local files."""
    from onnxscript import optimizer
    from onnxscript.rewriter import RewriteRuleSet
    from onnxscript.rewriter.rules import common as rules

    passes = ir.passes.common
    passes.InlinePass()(graph)
    # Also folds the transposed weight of a Linear on more than two axes, whatever its size, so that the weight
    # stays what every reader looks for: an initializer of the node that multiplies by it.
    optimizer.fold_constants(graph)
    RewriteRuleSet(
        [
            rules.no_op_cast_rule,
            rules.no_op_expand_rule,
            rules.no_op_transpose_rule,
            rules.reshape_reshape_rule,
            rules.cast_constant_of_shape_rule,
            rules.remove_optional_bias_from_conv_rule,  # the exporter writes zeros where there is none
            rules.remove_optional_bias_from_gemm_rule,
        ]
    ).apply_to_model(graph)
    passes.RemoveUnusedNodesPass()(graph)
    passes.RemoveUnusedFunctionsPass()(graph)  # type: ignore[no-untyped-call]
    passes.RemoveUnusedOpsetsPass()(graph)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    passes.ClearMetadataAndDocStringPass()(graph)  # stack traces, with the paths of the machine
    graph.metadata_props.clear()
    graph.graph.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.outputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.graph:
        for value in node.outputs:
            value.metadata_props.clear()


def _check_signature(graph: ir.Model, record: pair.Record) -> None:
    """The graph takes and gives what the record says, for any number of rows."""
    for values, specs in ((graph.graph.inputs, record.inputs), (graph.graph.outputs, record.outputs)):
        for value, spec in zip(values, specs, strict=True):
            shape = tuple(
                dim if isinstance(dim, int) else str(dim.value)
                for dim in (value.shape or ())  # a SymbolicDim holds its name
            )
            dtype = str(value.dtype.numpy()) if value.dtype else "unknown"
            if (value.name, dtype, shape) != (spec.name, spec.dtype, spec.shape):
                raise UsageError(
                    f"{spec.name} is {spec.dtype} {list(spec.shape)}, but {dtype} {list(shape)} in the ONNX graph.",
                    "Its forward must keep the batch as the first axis, and work for every batch size.",
                )


def _save(graph: ir.Model, path: Path) -> None:
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    if size >= 2**31 - 2**20:  # protobuf's limit, and some room for the graph
        raise UsageError(
            f"The model has {size / 2**30:.1f} GiB of weights; one ONNX file holds less than 2.",
            "Export a smaller model.",
        )
    ir.save(graph, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of themselves. What stops them is an exception, and gets through."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> str:
    """The first line of what is behind an error: the exporters wrap it in several of their own."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
