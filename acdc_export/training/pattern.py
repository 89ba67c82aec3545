"""Which weights are kept in a sparse phase: the largest magnitudes anywhere, N of M input channels, or whole blocks.

Every choice is exact, to the single weight, and the same on every device: among equal magnitudes those that come
first (by layer, then by flat index) are dropped first. `patterns.reference_masks` says the same in plain numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from .. import patterns
from ..errors import TrainingError, UsageError, nearest
from ..patterns import Scope, zeros_of
from .layers import TYPES, Exclusion, LayerSelection, named_by, require_matches, select
from .topk import keep_largest

LayerCollapse = Literal["warn", "refuse"]
"""What happens where a pattern would drop every weight of a layer: "warn" goes on, and says so."""


class Pattern(Protocol):
    """Chooses the layers once, and the weights that are kept at the start of each sparse phase."""

    @property
    def kind(self) -> str: ...

    @property
    def scope(self) -> str: ...

    @property
    def sparsity(self) -> float: ...

    def select(self, model: nn.Module) -> LayerSelection:
        """The layers that the pattern prunes, and why it leaves the others dense."""
        ...

    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Boolean masks, shaped and placed as `weights`: True is kept."""
        ...


@dataclass(frozen=True)
class _Layers:
    """What all patterns have in common: which layers they leave dense.

    `exclude` are names or shell patterns (`layers.named_by`): "head", "stem.*", "attn.in_proj_weight". `exclude_types`
    are of `layers.TYPES`, `exclude_below` is a number of weights. `recurrent` also prunes the matrices of LSTM, GRU and
    RNN layers. `layer_collapse` says what happens where every weight of a layer would be zero.

    The last two are not in the text of a pattern: checkpoints are recognized by it and by the weights that are pruned,
    and older ones know neither.
    """

    exclude: Sequence[str] = field(default=(), kw_only=True)
    exclude_types: Sequence[str] = field(default=(), kw_only=True)
    exclude_below: int = field(default=0, kw_only=True)
    recurrent: bool = field(default=False, kw_only=True, repr=False)
    layer_collapse: LayerCollapse = field(default="warn", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        for name in ("exclude", "exclude_types"):
            given = getattr(self, name)
            # A string is a sequence of patterns, too: one a letter.
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        for kind in self.exclude_types:
            if kind not in TYPES:
                raise UsageError(
                    f"Unknown type of layer '{kind}'{nearest(kind, list(TYPES))}.", f"There are {', '.join(TYPES)}."
                )
        known = get_args(LayerCollapse)
        if self.layer_collapse not in known:
            raise UsageError(
                f"Unknown layer_collapse '{self.layer_collapse}'{nearest(str(self.layer_collapse), known)}.",
                "'warn' goes on where every weight of a layer would be zero, 'refuse' ends the run.",
            )

    def select(self, model: nn.Module) -> LayerSelection:
        """The weights that this pattern prunes, and all others of two dimensions or more with the reason.

        Raises:
            UsageError: nothing to prune; a name that matches no weight; a weight that is shared between layers, is
                computed from others, has no shape yet, or has too few elements for this sparsity.
        """
        exclusion = Exclusion(self.exclude, self.exclude_types, self.exclude_below)
        selection = select(model, exclusion, self._unfit, recurrent=self.recurrent)
        self._check(selection)
        return selection

    def _unfit(self, weight: nn.Parameter) -> str | None:
        """Why this weight can't have the pattern, or nothing."""
        return None

    def _check(self, selection: LayerSelection) -> None:
        """Refuse what the pattern can't do with these layers."""


@dataclass(frozen=True)
class _Ranked(_Layers):
    """Patterns that rank what they drop: in all layers together ("global"), or in each by itself ("uniform").

    `overrides` gives single layers, by name or shell pattern as in `exclude`, a sparsity of their own; the first that
    matches counts. Those are ranked by themselves.
    """

    sparsity: float
    scope: Scope = "global"
    overrides: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for sparsity in (self.sparsity, *self.overrides.values()):
            if not 0 < sparsity < 1:
                raise UsageError(
                    f"Sparsity {sparsity} is not between 0 and 1.", "Give the share of zeros: 0.9 for 90 %."
                )
        if self.scope not in ("global", "uniform"):
            raise UsageError(
                f"Unknown scope '{self.scope}'{nearest(self.scope, ['global', 'uniform'])}.",
                "'global' ranks the weights of all layers together, 'uniform' those of each layer.",
            )

    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Boolean masks, shaped and placed as `weights`: True is kept.

        A layer whose weights are all among the smallest loses all of them, as in the authors' code.

        Raises:
            TrainingError: weights that are not finite; with `layer_collapse` "refuse" also a layer that would lose all.
        """
        kept: dict[str, Tensor] = {}
        for names, sparsity in self._groups(list(weights)):
            scores = {name: self._scores(weights[name]) for name in names}
            zeros = zeros_of(sparsity, sum(score.numel() for score in scores.values()))
            kept |= keep_largest(scores, zeros)
        masks = {name: self._spread(kept[name], weight) for name, weight in weights.items()}
        for name in collapsed(masks) if self.layer_collapse == "refuse" else ():
            raise TrainingError(
                f"Every weight of {name} would be zero: its {masks[name].numel()} are all among the smallest.",
                "Lower the sparsity, exclude that layer, choose scope 'uniform', or go on with layer_collapse 'warn'.",
            )
        return masks

    def _groups(self, names: Sequence[str]) -> Iterator[tuple[list[str], float]]:
        """The weights that are ranked together, and the share of them that is dropped."""
        together = []
        for name in names:
            override = self._override(name)
            if override is None and self.scope == "global":
                together.append(name)
            else:
                yield [name], self.sparsity if override is None else override
        if together:
            yield together, self.sparsity

    def _override(self, name: str) -> float | None:
        return next((share for pattern, share in self.overrides.items() if named_by(pattern, name)), None)

    def _check(self, selection: LayerSelection) -> None:
        names = list(selection.weights)
        require_matches(list(self.overrides), names, "overrides")
        for group, sparsity in self._groups(list(selection.weights)):
            total = sum(self._count(selection.weights[name]) for name in group)
            if zeros_of(sparsity, total) == total:
                where = group[0] if len(group) == 1 < len(names) else "the model"
                count = sum(selection.weights[name].numel() for name in group)
                raise UsageError(
                    f"Of the {count} weights of {where}, none would be left at sparsity {sparsity}.",
                    "Exclude that layer, or lower the sparsity.",
                )

    def _count(self, weight: Tensor) -> int:
        """How many scores this weight has."""
        return weight.numel()

    def _scores(self, weight: Tensor) -> Tensor:
        """What is ranked."""
        return weight.detach()

    def _spread(self, kept: Tensor, weight: Tensor) -> Tensor:
        """The mask of the scores as one of the weight."""
        return kept


@dataclass(frozen=True)
class Unstructured(_Ranked):
    """The smallest magnitudes are zero, wherever they are: in all layers together, or the same share of each.

    At least the share `sparsity` of the pruned weights is zero: ceil(sparsity * weights) of them exactly, where 0.9
    means nine tenths and not the float that is nearest to it. Depthwise convolutions are pruned like all others, as in
    the paper's MobileNet, unless `exclude_types` names them.

    Args:
        sparsity: the share of zeros, in (0, 1).
        scope: "global" or "uniform".
        overrides: for single layers, by name or shell pattern, a share of their own.
        exclude, exclude_types, exclude_below: layers left dense: by name or shell pattern ("head", "stem.*"), by type
            ("Linear", "Conv2d", "depthwise", "MultiheadAttention"), or with fewer than so many weights.
        recurrent: whether the matrices of LSTM, GRU and RNN layers and cells are pruned, too.
        layer_collapse: "warn" goes on where every weight of a layer is among the smallest, and says so; "refuse" ends
            the run with a `TrainingError`.

    Raises:
        UsageError: a sparsity outside (0, 1), an unknown scope, type or layer_collapse.
    """

    kind: ClassVar[str] = "unstructured"


@dataclass(frozen=True)
class Blocks(_Ranked):
    """Blocks of `size` weights along the input channels are kept or zero as a whole, by the sum of their magnitudes.

    A block lies in one filter at one kernel position, as the 1x4 blocks that VNNI instructions multiply at once. Layers
    whose input channels (per group) are no multiple of `size` stay dense, depthwise convolutions among them.

    Args and errors are those of `Unstructured`; ceil(sparsity * blocks) of the blocks are zero.
    """

    size: int = field(default=4, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        patterns.blocks(self.size)

    @property
    def kind(self) -> str:
        return patterns.blocks(self.size).name

    def _unfit(self, weight: nn.Parameter) -> str | None:
        return patterns.blocks(self.size).ineligible(weight.shape[1])

    def _count(self, weight: Tensor) -> int:
        return weight.numel() // self.size

    def _scores(self, weight: Tensor) -> Tensor:
        blocks = _groups(weight.detach().float().abs(), self.size)
        total = blocks.select(2, 0).clone()
        for index in range(1, self.size):  # in this order on every device: a sum that rounds otherwise ranks otherwise
            total += blocks.select(2, index)
        return total

    def _spread(self, kept: Tensor, weight: Tensor) -> Tensor:
        return kept.repeat_interleave(self.size, dim=1)


@dataclass(frozen=True)
class NM(_Layers):
    """Of every `m` weights along the input channels, the `n` largest are kept: 2:4 is `NM(2, 4)`.

    Groups lie in one filter at one kernel position, as TensorRT and NVIDIA's sparse tensor cores read them. Layers
    whose input channels (per group) are no multiple of `m` stay dense: the first convolution of most networks, and
    depthwise ones.

    Raises:
        UsageError: not 0 < n < m; an unknown type.
    """

    n: int
    m: int

    scope: ClassVar[str] = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        patterns.n_of_m(self.n, self.m)

    @property
    def kind(self) -> str:
        return patterns.n_of_m(self.n, self.m).name

    @property
    def sparsity(self) -> float:
        return 1 - self.n / self.m

    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Boolean masks, shaped and placed as `weights`: True is kept, exactly `n` of each group.

        Raises:
            TrainingError: weights that are not finite.
        """
        masks = {}
        for name, weight in weights.items():
            magnitudes = weight.detach().abs()
            if not magnitudes.isfinite().all():
                raise TrainingError(
                    f"{name} holds weights that are NaN or infinite.",
                    "The run diverged; train with a lower learning rate.",
                )
            groups = _groups(magnitudes, self.m)
            dropped = groups.argsort(dim=2, stable=True).narrow(2, 0, self.m - self.n)  # of equal ones, the first
            masks[name] = torch.ones_like(groups, dtype=torch.bool).scatter_(2, dropped, False).flatten(1, 2)
        return masks

    def _unfit(self, weight: nn.Parameter) -> str | None:
        return patterns.n_of_m(self.n, self.m).ineligible(weight.shape[1])


def of_kind(kind: str, sparsity: float | None = None, scope: Scope = "global", **layers: object) -> Pattern:
    """The pattern of a kind that `patterns.parse` knows, by its name: "unstructured", "block4" or "2:4".

    Raises:
        UsageError: an unknown kind, one that lacks its sparsity, or what the pattern itself refuses.
    """
    known = patterns.parse(kind)
    if known.kept is not None:
        return NM(known.kept, known.size, **layers)  # type: ignore[arg-type]
    if sparsity is None:
        raise UsageError(f"The pattern {kind} needs a sparsity.", "Give the share of zeros: 0.9 for 90 %.")
    if known.size > 1:
        return Blocks(sparsity, scope, size=known.size, **layers)  # type: ignore[arg-type]
    return Unstructured(sparsity, scope, **layers)  # type: ignore[arg-type]


def collapsed(masks: Mapping[str, Tensor]) -> list[str]:
    """The names of the layers that keep no weight at all."""
    return [name for name, mask in masks.items() if not mask.any()]


def _groups(weight: Tensor, size: int) -> Tensor:
    """(O, I, ...) as (O, I / size, size, ...)."""
    return weight.reshape(weight.shape[0], -1, size, *weight.shape[2:])
