"""Which layers of a model are pruned, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from ..errors import UsageError, nearest
from .topk import require_exact

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""The layers whose weights are pruned. Biases and normalisation never are."""

TYPES = ("Linear", "Conv1d", "Conv2d", "Conv3d", "depthwise")
"""Types by which layers may be excluded. In "depthwise" convolutions every filter sees one input channel."""


@dataclass(frozen=True)
class LayerSelection:
    """The layers of a model that a pattern prunes, and those that it leaves dense."""

    weights: dict[str, nn.Parameter]  # to prune, by their names in the state dict, in the order of the modules
    dense: dict[str, str]  # why a layer stays dense, by the module's name


@dataclass(frozen=True)
class Exclusion:
    """Says which layers stay dense: by module name or shell pattern, by type, or with fewer than `below` weights."""

    names: Sequence[str] = ()
    types: Sequence[str] = ()
    below: int = 0

    def reason_by_name(self, name: str, module: nn.Module) -> str | None:
        """Say why the name or type of this layer excludes it, or return None."""
        for pattern in self.names:
            if fnmatchcase(name, pattern):
                return f"excluded by '{pattern}'"
        for kind in self.types:
            if kind == type(module).__name__ or (kind == "depthwise" and is_depthwise(module)):
                return f"excluded as {kind}"
        return None

    def reason_by_size(self, weight: nn.Parameter) -> str | None:
        """Say why the size of this weight excludes its layer, or return None."""
        return f"{weight.numel()} weights, fewer than {self.below}" if weight.numel() < self.below else None


def select(model: nn.Module, exclusion: Exclusion, unfit: Callable[[nn.Parameter], str | None]) -> LayerSelection:
    """Select the layers to prune: all that have weights, are not excluded, and fit the pattern.

    Args:
        unfit: says why a weight doesn't fit the pattern, or returns None.

    Raises:
        UsageError: there is nothing to prune; an exclusion matches no layer; a weight is shared between layers, is
            computed from others, has no shape yet, or has a type that float32 doesn't hold exactly.
    """
    modules = {name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE)}
    require_matches(exclusion.names, list(modules), "excludes")
    weights: dict[str, nn.Parameter] = {}
    dense: dict[str, str] = {}
    for name, module in modules.items():
        reason = exclusion.reason_by_name(name, module)
        if reason is None:  # an excluded weight may be of any type, so the weight is checked only here
            weight = _weight(name, module)
            reason = exclusion.reason_by_size(weight) or unfit(weight)
        if reason is None:
            weights[f"{name}.weight" if name else "weight"] = weight
        else:
            dense[name] = reason
    if not weights:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:3])
        raise UsageError(
            "The model has no weights to prune: "
            + (f"its layers stay dense ({reasons})." if dense else "no Conv1d, Conv2d, Conv3d or Linear layer."),
            "Exclude fewer layers, choose another pattern, or prune a model that has some.",
        )
    _refuse_shared(model, weights)
    return LayerSelection(weights, dense)


def is_depthwise(module: nn.Module) -> bool:
    """Whether `module` is a convolution of several groups in which every filter sees one input channel."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and 1 < module.groups == module.in_channels


def require_matches(patterns: Sequence[str], names: Sequence[str], verb: str) -> None:
    """Refuse a shell pattern that no layer's name matches. Raises `UsageError`."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"'{pattern}' {verb} nothing{nearest(pattern, list(names))}.",
                f"The layers with weights to prune are {_listing(list(names))}.",
            )


def _weight(name: str, module: nn.Module) -> nn.Parameter:
    weight = module._parameters.get("weight")
    if weight is None:
        raise UsageError(
            f"The weight of {name or 'the model'} is computed from other parameters (a parametrization).",
            "Remove it (torch.nn.utils.parametrize.remove_parametrizations), or exclude that layer.",
        )
    if isinstance(weight, UninitializedParameter):
        raise UsageError(
            f"The weight of {name or 'the model'} has no shape yet.", "Run one batch through the model before this."
        )
    require_exact(f"{name}.weight" if name else "weight", weight)
    return weight


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
