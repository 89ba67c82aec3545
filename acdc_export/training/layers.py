"""Which weights of a model are pruned, and why the others stay dense.

A weight is a parameter of two dimensions or more. Pruned are matrices and filters of features: the weights of Linear
and convolution layers, and the projections of attention, which are Linear layers in all but name. The matrices of
recurrent layers are pruned where a pattern asks for them. Everything else stays dense, and is named with the reason.

A weight's *label* is how people name it: its module's name where the parameter is called `weight` ("head",
"blocks.0.mlp"), and else the parameter's full name ("blocks.0.attn.in_proj_weight", "pos_embed").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import UsageError, nearest
from .topk import require_exact

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""The layers whose `weight` is pruned. Biases and normalisation never are."""

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
"""The layers whose matrices are pruned only where a pattern asks for it."""

TYPES = ("Linear", "Conv1d", "Conv2d", "Conv3d", "depthwise", "MultiheadAttention")
"""Types by which layers may be excluded, subclasses included. In "depthwise" convolutions every filter sees one input
channel. The projections of a MultiheadAttention count as Linear, too."""

_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_COMPUTED = ("_g", "_v", "_orig")  # what weight_norm, spectral_norm and prune compute a weight from: weight_g, weight_v


@dataclass(frozen=True)
class LayerSelection:
    """The weights of a model that a pattern prunes, and those that it leaves dense."""

    weights: dict[str, nn.Parameter]  # to prune, by their names in the state dict, in the order of the modules
    dense: dict[str, str]  # why a weight stays dense, by its label: the module's name, or the parameter's full name


@dataclass(frozen=True)
class Exclusion:
    """Says which weights stay dense: by name or shell pattern (`named_by`), by type, or with fewer than `below`
    elements."""

    names: Sequence[str] = ()
    types: Sequence[str] = ()
    below: int = 0

    def reason_by_name(self, weight: _Weight) -> str | None:
        """Say why the name or type of this weight excludes it, or return None."""
        for pattern in self.names:
            if named_by(pattern, weight.name):
                return f"excluded by '{pattern}'"
        for kind in self.types:
            if kind in weight.types:
                return f"excluded as {kind}"
        return None

    def reason_by_size(self, weight: nn.Parameter) -> str | None:
        """Say why the size of this weight excludes it, or return None."""
        return f"{weight.numel()} weights, fewer than {self.below}" if weight.numel() < self.below else None


@dataclass(frozen=True)
class _Weight:
    """A weight of a module, which may be computed from other parameters."""

    name: str  # in the state dict: "fc.weight", "attn.in_proj_weight"
    module: nn.Module

    @property
    def leaf(self) -> str:
        """The parameter's name within its module."""
        return self.name.rpartition(".")[2]

    @property
    def parameter(self) -> nn.Parameter | None:
        """The parameter itself; None where it is computed from others."""
        return self.module._parameters.get(self.leaf)

    @property
    def types(self) -> set[str]:
        """The types by which it may be excluded."""
        types = {kind.__name__ for kind in type(self.module).__mro__}
        if isinstance(self.module, nn.MultiheadAttention):
            types.add("Linear")
        if is_depthwise(self.module):
            types.add("depthwise")
        return types

    @property
    def is_recurrent(self) -> bool:
        """Whether it is a matrix of a recurrent layer."""
        return isinstance(self.module, RECURRENT) and self.leaf.startswith("weight_")

    @property
    def is_prunable(self) -> bool:
        """Whether it is a matrix or filter of features, and not of a recurrent layer."""
        if isinstance(self.module, nn.MultiheadAttention):
            return self.leaf in _PROJECTIONS
        return isinstance(self.module, PRUNABLE) and self.leaf == "weight"

    def why_never(self) -> str:
        """Say why a weight of this kind is not pruned, whatever the pattern."""
        kind = type(self.module).__name__
        if self.is_recurrent:
            return f"a matrix of {kind}, pruned only with recurrent = true"
        if isinstance(self.module, nn.MultiheadAttention):  # bias_k, bias_v
            return f"a bias of {kind}"
        if isinstance(self.module, _NORMS):
            return f"normalisation ({kind})"
        if self.leaf == "weight":
            return f"{kind} layers are not pruned"
        return f"a parameter of {kind}, which is no layer that is pruned"


def select(
    model: nn.Module,
    exclusion: Exclusion,
    unfit: Callable[[nn.Parameter], str | None],
    *,
    recurrent: bool = False,
) -> LayerSelection:
    """Select the weights to prune: all matrices and filters of features that are not excluded, and fit the pattern.

    Args:
        unfit: says why a weight doesn't fit the pattern, or returns None.
        recurrent: the matrices of LSTM, GRU and RNN layers and cells are pruned, too.

    Raises:
        UsageError: there is nothing to prune; an exclusion matches no weight; a weight is shared between layers, is
            computed from others, has no shape yet, or has a type that float32 doesn't hold exactly.
    """
    candidates = list(_weights(model))
    require_matches(exclusion.names, [weight.name for weight in candidates], "excludes")
    weights: dict[str, nn.Parameter] = {}
    dense: dict[str, str] = {}
    for weight in candidates:
        reason = exclusion.reason_by_name(weight)
        if reason is None and not (weight.is_prunable or (recurrent and weight.is_recurrent)):
            reason = weight.why_never()
        if reason is None:  # an excluded weight may be of any type, so the weight is checked only here
            parameter = _usable(weight)
            reason = exclusion.reason_by_size(parameter) or unfit(parameter)
        if reason is None:
            weights[weight.name] = parameter
        else:
            dense[label(weight.name)] = reason
    if not weights:
        reasons = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in list(dense.items())[:3])
        raise UsageError(
            "The model has no weights to prune: "
            + (f"its layers stay dense ({reasons})." if dense else "no Conv1d, Conv2d, Conv3d or Linear layer."),
            "Exclude fewer layers, choose another pattern, or prune a model that has some.",
        )
    _refuse_shared(model, weights)
    _refuse_scripted(model)
    return LayerSelection(weights, dense)


def label(name: str) -> str:
    """The name by which people know the weight that is called `name` in the state dict."""
    module, _, leaf = name.rpartition(".")
    return module if leaf == "weight" else name


def named_by(pattern: str, name: str) -> bool:
    """Whether the shell pattern names the weight that is called `name` in the state dict.

    It does if it matches the name of its module ("attn" and "blocks.*"). A parameter with another name than `weight` is
    also matched by its full name ("attn.in_proj_weight", "*.weight_hh_l0"). The exact name in the state dict always
    names a weight.
    """
    module, _, leaf = name.rpartition(".")
    return name == pattern or fnmatchcase(module, pattern) or (leaf != "weight" and fnmatchcase(name, pattern))


def is_depthwise(module: nn.Module) -> bool:
    """Whether `module` is a convolution of several groups in which every filter sees one input channel."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and 1 < module.groups == module.in_channels


def require_matches(patterns: Sequence[str], names: Sequence[str], verb: str) -> None:
    """Refuse a shell pattern that names none of the weights `names`, as in the state dict. Raises `UsageError`."""
    for pattern in patterns:
        if not any(named_by(pattern, name) for name in names):
            labels = [label(name) for name in names]
            raise UsageError(
                f"'{pattern}' {verb} nothing{nearest(pattern, labels)}.",
                f"The layers with weights are {_listing(labels)}.",
            )


def _weights(model: nn.Module) -> Iterator[_Weight]:
    """Yield every weight once, in the order of the modules.

    Parameters that a weight is computed from are not named beside it.
    """
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue  # its weight is named by the module that is parametrized
        for leaf in _leaves(module):
            yield _Weight(f"{name}.{leaf}" if name else leaf, module)


def _leaves(module: nn.Module) -> Iterable[str]:
    """The names of a module's own weights, of those that are computed from others as well."""
    leaves: dict[str, None] = {}
    if isinstance(module, PRUNABLE):
        leaves["weight"] = None
    for leaf, parameter in module._parameters.items():
        if parameter is None:
            continue
        source = next((leaf.removesuffix(end) for end in _COMPUTED if leaf.endswith(end)), leaf)
        if source != leaf and source not in module._parameters and hasattr(module, source):
            leaf = source
        if not isinstance(parameter, UninitializedParameter) and parameter.ndim >= 2:
            leaves[leaf] = None
    if parametrize.is_parametrized(module):
        for leaf in cast(nn.ModuleDict, module.parametrizations):
            if getattr(module, leaf).ndim >= 2:
                leaves[leaf] = None
    return leaves


def _usable(weight: _Weight) -> nn.Parameter:
    """The parameter of a weight that is to be pruned. Raises `UsageError` where it can't be."""
    where = label(weight.name) or "the model"
    parameter = weight.parameter
    if parameter is None:
        how, remedy = _computed(weight)
        raise UsageError(f"The weight of {where} is computed from other parameters ({how}).", remedy)
    if isinstance(parameter, UninitializedParameter):
        raise UsageError(f"The weight of {where} has no shape yet.", "Run one batch through the model before this.")
    require_exact(weight.name, parameter)
    return parameter


def _computed(weight: _Weight) -> tuple[str, str]:
    """What computes a weight, and how to be rid of it."""
    module, leaf = weight.module, weight.leaf
    owner = weight.name.rpartition(".")[0]
    path = f"model.get_submodule('{owner}')" if owner else "model"
    hooks = [hook for hook in module._forward_pre_hooks.values() if _tensor_of(hook) == leaf]
    utils = "torch.nn.utils"
    if parametrize.is_parametrized(module, leaf):
        how, call = "a parametrization", f"{utils}.parametrize.remove_parametrizations({path}, '{leaf}')"
    elif any(isinstance(hook, prune.BasePruningMethod) for hook in hooks):
        how, call = f"{utils}.prune", f"{utils}.prune.remove({path}, '{leaf}')"
    elif any(isinstance(hook, WeightNorm) for hook in hooks):
        how, call = f"{utils}.weight_norm", f"{utils}.remove_weight_norm({path}, '{leaf}')"
    elif any(isinstance(hook, SpectralNorm) for hook in hooks):
        how, call = f"{utils}.spectral_norm", f"{utils}.remove_spectral_norm({path}, '{leaf}')"
    else:
        return f"by {type(module).__name__} itself", "Exclude that layer, or give it a parameter called `weight`."
    return how, f"Call {call} before the optimizer is made, or exclude that layer."


def _tensor_of(hook: object) -> str | None:
    """The name of the tensor that a hook of torch's own utilities computes; None of any other hook."""
    if isinstance(hook, prune.BasePruningMethod):
        return hook._tensor_name
    return hook.name if isinstance(hook, WeightNorm | SpectralNorm) else None


def _refuse_scripted(model: nn.Module) -> None:
    """Refuse TorchScript before it is trained: torch.export, and so the pair, takes none."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"{name or 'The model'} is TorchScript, which can't be exported to ONNX.",
                "Train the module that it was scripted or traced from.",
            )


def _refuse_shared(model: nn.Module, weights: dict[str, nn.Parameter]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for weight in weights.values():
        shared = owners[id(weight)]
        if len(shared) > 1:
            raise UsageError(
                f"{' and '.join(shared)} are one parameter, which can't be pruned for one and not for the other.",
                "Exclude these layers, or give each its own weights.",
            )


def _listing(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name or "(the model itself)" for name in names[:most]) + more if names else "none"
