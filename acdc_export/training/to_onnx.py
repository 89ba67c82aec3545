"""Both halves of a finished run as a pair: the only place where torch meets ONNX."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from .. import pair
from ..errors import UsageError, nearest
from ..records.history import Cost, EpochRecord, History, PhaseRecord
from ..version import __version__
from . import purity, state
from .flops import cost, count
from .network import ExampleInputs, Network, cause, network, reference_inputs, require_finite
from .pattern import Pattern
from .schedule import Unit

OPSET = 18  # the oldest that torch's exporter writes without converting: most runtimes take it
_BATCH = "batch"


def write_pair(
    path: Path,
    model: nn.Module,
    sparse: state.StateDict,
    dense: state.StateDict,
    example_inputs: ExampleInputs,
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
    judged_output: str | None = None,
    batch_size: int | None = None,
    classes: Sequence[str] = (),
) -> pair.Pair:
    """Write the pair of `model` with the state dicts `sparse` and `dense` to the folder `path`.

    `model` is copied, not touched. Weights and inputs of 16 bits are widened to float32, which changes none.

    Args:
        pruned: names of the weights that `pattern` prunes, in `sparse`.
        left_dense: the other weights of two dimensions or more, by label (`layers`), and why.
        phases, epochs: what the run was like, in `unit`s.

    For the others see `ACDC.save_pair`.

    Raises:
        UsageError: inputs or names that don't fit the model, a model whose rows depend on more than their inputs, or
            one that can't be exported.
        TrainingError: outputs that are not finite.
        OutputError: the folder can't be written.
        PairError: the weights make no sound pair.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}.", "Give the number of rows that the network is to run on.")
    inputs = reference_inputs(example_inputs, input_names, batch_size)
    states = {"sparse": state.portable(sparse), "dense": state.portable(dense)}
    networks, logits = {}, {}
    for half, weights in states.items():
        networks[half] = network(model, weights, example_inputs, output_names)
        with purity.restored(networks[half].module):
            logits[half] = {key: value.contiguous() for key, value in networks[half](inputs).items()}
        require_finite(logits[half])
        purity.check(networks[half], inputs, logits[half], fixed_batch=batch_size is not None)
    twin = {key: states["dense"][key] for key in pruned}
    twin_nonzeros = {key: int(weight.count_nonzero()) for key, weight in twin.items()}
    cost, cost_unknown = _cost(networks["dense"], inputs, phases, twin_nonzeros)
    judged = _judged(logits["sparse"], judged_output)
    names = _class_names(classes, judged, logits["sparse"][judged])
    record = pair.Record(
        name=name or path.name,
        inputs=_specs(inputs, batch_size),
        outputs=_specs(logits["sparse"], batch_size),
        pattern=pair.PatternRecord(
            kind=pattern.kind,
            scope=pattern.scope,
            sparsity=pattern.sparsity,
            layers={key: _count(states["sparse"][key]) for key in pruned},
            left_dense=dict(left_dense),
        ),
        reference=pair.ReferenceRecord(f"PyTorch {torch.__version__}, eager"),
        history=History(
            tuple(phases),
            unit,
            tuple(epochs),
            cost,
            totals={key: weight.numel() for key, weight in twin.items()},
            twin_nonzeros=twin_nonzeros,
            cost_unknown=cost_unknown,
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        pipeline=pipeline,
        seed=seed,
        metrics=metrics,
        judged_output=judged,
        classes=names,
        tools={"acdc-export": __version__, "torch": torch.__version__, "onnx": version("onnx")},
    )

    def fill(folder: Path) -> None:
        arrays = {f"input.{key}": tensor.numpy() for key, tensor in inputs.items()}
        for half, weights in states.items():
            _export(networks[half], inputs, record, folder / f"{half}.onnx")
            state.save(weights, folder / f"{half}.safetensors")
            arrays |= {f"{half}.{key}": tensor.numpy() for key, tensor in logits[half].items()}
        np.savez(folder / "reference.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes no **arrays

    return pair.write(path, record, fill)


def _judged(outputs: Mapping[str, Tensor], asked: str | None) -> str:
    """The output that is judged: the one that was asked for, the only one, or that called "logits".

    Where none is called so, the first that could hold one logit for each class; that is said.
    """
    if asked is not None and asked not in outputs:
        raise UsageError(
            f"judged_output is '{asked}'; the network gives {', '.join(outputs)}{nearest(asked, [*outputs])}.",
            "Name the output that holds one logit for each class.",
        )
    if asked is not None or len(outputs) == 1 or "logits" in outputs:
        return asked or ("logits" if "logits" in outputs else next(iter(outputs)))
    fitting = [key for key, output in outputs.items() if output.ndim == 2 and output.is_floating_point()]
    judged = [*fitting, *outputs][0]
    warnings.warn(
        f"The network gives {', '.join(outputs)}; '{judged}' will be judged. Say which with judged_output.",
        stacklevel=2,
    )
    return judged


def _class_names(classes: Sequence[str], judged: str, output: Tensor) -> tuple[str, ...]:
    """The names of the classes. Raises `UsageError` unless there is a different one for each logit."""
    if isinstance(classes, str):
        raise UsageError("classes is a single string.", "Give a list of names, one for each logit.")
    names = tuple(classes)
    if not names:
        return ()
    repeated = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if repeated is not None or not all(isinstance(name, str) and name.strip() for name in names):
        problem = f"{repeated!r} is there twice" if repeated is not None else "one is empty or no string"
        raise UsageError(f"classes: {problem}.", "Give a different name for each class, in the order of the logits.")
    if output.ndim == 2 and output.shape[1] != len(names):
        raise UsageError(
            f"classes has {len(names)} names, and the output '{judged}' tells {output.shape[1]} classes apart.",
            "Give one for each logit, in their order.",
        )
    return names


def _cost(
    network: Network, inputs: Mapping[str, Tensor], phases: Sequence[PhaseRecord], twin: Mapping[str, int]
) -> tuple[Cost | None, str | None]:
    """What the halves cost in FLOPs, or why that isn't known: a side figure, which stops nobody."""
    try:
        flops = count(network.module, lambda: network(inputs), len(next(iter(inputs.values()))))
        return cost(flops, phases, twin), None
    except Exception as error:  # networks use their layers in any way
        return None, cause(error)


def _specs(tensors: Mapping[str, Tensor], batch_size: int | None) -> tuple[pair.TensorSpec, ...]:
    return tuple(
        pair.TensorSpec(name, str(tensor.numpy().dtype), (batch_size or _BATCH, *tensor.shape[1:]))
        for name, tensor in tensors.items()
    )


def _count(weight: Tensor) -> pair.LayerCount:
    return pair.LayerCount(zeros=int((weight == 0).sum()), total=weight.numel())


# ------------------------------------------------------------------------------------------------- ONNX's side


def _export(network: Network, inputs: Mapping[str, Tensor], record: pair.Record, path: Path) -> None:
    """Write a network as one ONNX file, with its initializers named as in the state dict, and with a symbolic batch
    unless it is for one batch size."""
    rows, batch = tuple(inputs.values()), None
    if record.batch_size is None:
        # Export takes sizes 0 and 1 for constants.
        rows = tuple(tensor[:1].expand(3, *tensor.shape[1:]).contiguous() for tensor in rows)
        batch = torch.export.Dim(_BATCH)
    try:
        with _quiet(), network.positional(list(inputs)) as module:
            program = torch.onnx.export(
                module,
                rows,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple({0: batch} for _ in rows) if batch else None,
                # Its optimizer folds batch norms into weights, which then are not the state dict's any more.
                optimize=False,
                verbose=False,
            )
            assert program is not None
            graph = program.model
            _tidy(graph)
    except Exception as error:  # torch.export, the converter and the tidying each have many of their own
        raise UsageError(
            f"The model can't be exported to ONNX: {cause(error)}.",
            "Its forward has to be a graph of tensor operations for every batch size: no branches on values, no "
            "loops over a data-dependent count, no fixed batch size.",
        ) from error
    _name(graph, record)
    _check_signature(graph, record)
    _save(graph, path)


def _name(graph: ir.Model, record: pair.Record) -> None:
    """Give inputs and outputs the names of the record. Values inside that have one of them get another.

    Raises:
        UsageError: a name is that of a weight, or names an input and an output.
    """
    names = [spec.name for spec in (*record.inputs, *record.outputs)]
    for name in names:
        if name in graph.graph.initializers:
            raise UsageError(
                f"'{name}' is to name an input or output, and is the name of a weight.",
                "Give another name with input_names or output_names.",
            )
        if names.count(name) > 1:
            raise UsageError(f"'{name}' names an input and an output.", "Give others with input_names or output_names.")
    taken = {*names, *graph.graph.initializers}
    public = [*graph.graph.inputs, *graph.graph.outputs]
    inner = [value for node in graph.graph.all_nodes() for value in node.outputs if value not in public]
    taken |= {value.name or "" for value in inner}
    for value in inner:
        if value.name in names:
            value.name = next(new for at in itertools.count(1) if (new := f"{value.name}_{at}") not in taken)
            taken.add(value.name)
    for value, name in zip(public, names, strict=True):
        value.name = name


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
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UsageError(
            f"The model's ONNX graph is not valid: {cause(error)}.",
            "Give other input_names and output_names if it names one of them; else please report this network.",
        ) from error


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
