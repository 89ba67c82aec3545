"""Which weights live in a sparse phase. `Unstructured` is the one pattern so far; `Pattern` is what any other
(N:M, blocks) has to offer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Literal, Protocol

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from ..errors import TrainingError, UsageError, nearest
from .topk import keep_largest, require_exact

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""The layers whose weights are pruned. Biases and normalisation never are."""


class Pattern(Protocol):
    """Chooses the layers once, and the weights that live at the start of each sparse phase."""

    @property
    def kind(self) -> str: ...

    @property
    def scope(self) -> str: ...

    @property
    def sparsity(self) -> float: ...

    def layers(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The weights that the pattern prunes, by their names in the state dict."""
        ...

    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Boolean masks, shaped and placed as `weights`: True lives."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """The smallest magnitudes are zero, wherever they are: in all layers together, or the same share of each.

    `exclude` leaves layers dense, by module name or shell pattern ("head", "stem.*"). At least the share
    `sparsity` of the pruned weights is zero: ceil(sparsity * weights) of them exactly, where 0.9 means nine
    tenths and not the float that is nearest to it.

    Raises:
        UsageError: a sparsity outside (0, 1), an unknown scope.
    """

    sparsity: float
    scope: Literal["global", "uniform"] = "global"
    exclude: Sequence[str] = ()

    kind = "unstructured"

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise UsageError(
                f"Sparsity {self.sparsity} is not between 0 and 1.", "Give the share of zeros: 0.9 for 90 %."
            )
        if self.scope not in ("global", "uniform"):
            raise UsageError(
                f"Unknown scope '{self.scope}'{nearest(self.scope, ['global', 'uniform'])}.",
                "'global' ranks the weights of all layers together, 'uniform' those of each layer.",
            )
        # A string is a sequence of patterns, too: one a letter.
        exclude = (self.exclude,) if isinstance(self.exclude, str) else tuple(self.exclude)
        object.__setattr__(self, "exclude", exclude)

    def zeros(self, total: int) -> int:
        """How many of `total` weights are zero."""
        return math.ceil(Fraction(repr(float(self.sparsity))) * total)

    def layers(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The weights that this pattern prunes, by their names in the state dict, in the order of the modules.

        Raises:
            UsageError: nothing to prune; an exclusion that matches no layer; a weight that is shared between
                layers, is computed from others, has no shape yet, or has too few elements for this sparsity.
        """
        modules = {name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE)}
        for pattern in self.exclude:
            if not any(fnmatchcase(name, pattern) for name in modules):
                raise UsageError(
                    f"'{pattern}' excludes nothing{nearest(pattern, list(modules))}.",
                    f"The layers with weights to prune are {_listing(list(modules))}.",
                )
        weights = {
            _weight_name(name): _weight(name, module)
            for name, module in modules.items()
            if not any(fnmatchcase(name, pattern) for pattern in self.exclude)
        }
        if not weights:
            raise UsageError(
                "The model has no weights to prune: no Conv1d, Conv2d, Conv3d or Linear layer, or all are excluded.",
                "Exclude fewer layers, or prune a model that has some.",
            )
        _refuse_shared(model, weights)
        groups = {"the model": sum(weight.numel() for weight in weights.values())}
        if self.scope == "uniform":
            groups = {name: weight.numel() for name, weight in weights.items()}
        for name, total in groups.items():
            if self.zeros(total) == total:
                raise UsageError(
                    f"Of the {total} weights of {name}, none would be left at sparsity {self.sparsity}.",
                    "Exclude that layer, or lower the sparsity.",
                )
        return weights

    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Boolean masks, shaped and placed as `weights`: True lives.

        Raises:
            TrainingError: weights that are not finite, or a layer that would lose all of its weights.
        """
        if self.scope == "global":
            masks = keep_largest(weights, self.zeros(sum(weight.numel() for weight in weights.values())))
        else:
            masks = {}
            for name, weight in weights.items():
                masks.update(keep_largest({name: weight}, self.zeros(weight.numel())))
        for name, mask in masks.items():
            # Nothing would pass through such a layer, and no reader of pairs accepts one.
            if not mask.any():
                raise TrainingError(
                    f"Every weight of {name} would be zero: its {mask.numel()} are all among the smallest.",
                    "Lower the sparsity, exclude that layer, or choose scope 'uniform'.",
                )
        return masks


def _weight_name(module_name: str) -> str:
    return f"{module_name}.weight" if module_name else "weight"


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
    require_exact(_weight_name(name), weight)
    return weight


def _refuse_shared(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
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
