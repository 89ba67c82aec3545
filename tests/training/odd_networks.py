"""A corpus of odd networks: modules of a few lines, each with what has to become of it.

Every module takes (N, 6), or what `INPUTS` says, and gives 4 logits. `CORPUS` maps a name to a `Case`.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

ROWS = 8


def flat(seed: int = 0) -> Tensor:
    return torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(seed))


def images() -> Tensor:
    return torch.randn(ROWS, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def sequences() -> Tensor:
    return torch.randn(ROWS, 5, 8, generator=torch.Generator().manual_seed(2))


def tokens() -> Tensor:
    return torch.randint(0, 20, (ROWS, 5), generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Case:
    """`refused` is what the message says, at attaching or saving; `engine` what DeepSparse says."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]] = lambda: (flat(),)
    refused: str | None = None
    outputs: tuple[str, ...] = ("logits",)
    options: dict[str, Any] = field(default_factory=dict)  # of save_pair
    exclude: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()  # names that have to be among the layers left dense
    engine: str | None = None


class Plain(nn.Module):
    """`between` is what is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def between(self, hidden: Tensor) -> Tensor:
        return hidden.relu()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.between(self.body(x)))


def plain(between: Callable[[Plain, Tensor], Tensor], **modules: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A maker of a plain network with this between its layers, and further modules."""

    class Odd(Plain):
        def __init__(self) -> None:
            super().__init__()
            for name, make in modules.items():
                self.add_module(name, make())

        def between(self, hidden: Tensor) -> Tensor:
            return between(self, hidden)

    return Odd


def returning(form: Callable[[Tensor, Tensor], Any]) -> Callable[[], nn.Module]:
    class Returning(Plain):
        def forward(self, x: Tensor) -> Any:
            hidden = self.body(x).relu()
            logits = self.head(hidden)
            return logits if self.training else form(hidden, logits)

    return Returning


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


Pair = namedtuple("Pair", ["hidden", "logits"])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, left: Tensor, right: Tensor | None = None) -> Tensor:
        hidden: Tensor = self.left(left)
        return self.head((hidden if right is None else hidden + self.right(right)).relu())  # type: ignore[no-any-return]


class Tied(nn.Module):
    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        if shared:
            self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()))  # type: ignore[no-any-return]


class CalledTwice(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(8, 8)

    def between(self, hidden: Tensor) -> Tensor:
        return self.again(self.again(hidden).relu()).relu()  # type: ignore[no-any-return]


class Looped(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def between(self, hidden: Tensor) -> Tensor:
        for step in self.steps:
            hidden = hidden + step(hidden).relu()
        return hidden


class BranchOnValues(Plain):
    def between(self, hidden: Tensor) -> Tensor:
        return hidden if self.head.bias.sum() > 0 else -hidden


class Attention(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attn(x, x, x, need_weights=False)[0].mean(1))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.position = nn.Parameter(torch.zeros(1, 5, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x + self.position).mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(ids).mean(1)).relu())  # type: ignore[no-any-return]


class Convolutions(nn.Module):
    def __init__(self, *layers: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.rest, self.head = nn.Conv2d(2, 8, 3, padding=1), nn.Sequential(*layers), nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rest(self.stem(x).relu()).mean((2, 3)))  # type: ignore[no-any-return]


class WithIndices(Convolutions):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        pooled, _ = self.pool(self.stem(x))
        return self.head(self.unpool(input=pooled).flatten(1))  # type: ignore[no-any-return]


class Buffers(Plain):
    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((8,), 1.5), persistent=persistent)

    def between(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale


class Drifting(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def between(self, hidden: Tensor) -> Tensor:
        self.scale *= 1.01
        return hidden * self.scale


class Functional(Plain):
    """Uses a layer's weight without calling the layer, and a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(8, 8) / 3)
        self.again = nn.Linear(8, 8)

    def between(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden @ self.own, self.again.weight).relu()


def with_head(change: Callable[[nn.Linear], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Plain()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls the older ones deprecated
            change(model.head)
        return model

    return make


def compiled_part() -> nn.Module:
    model = Plain()
    model.body = torch.compile(model.body, backend="eager")  # type: ignore[assignment]
    return model


class Scripted(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))

    def between(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden)  # type: ignore[no-any-return]


class Versioned(nn.Linear):
    """Keeps its weight times 2 since version 2."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if (metadata.get("version") or 1) < 2:
            state[prefix + "weight"] = 2 * state[prefix + "weight"]
        super()._load_from_state_dict(state, prefix, metadata, *rest)


CORPUS = {
    # outputs
    "a dict": Case(returning(lambda h, z: {"hidden": h, "logits": z}), outputs=("hidden", "logits")),
    "an ordered dict": Case(returning(lambda h, z: OrderedDict(logits=z, hidden=h)), outputs=("logits", "hidden")),
    "a dataclass with nothing in it": Case(returning(lambda h, z: Output(z, h)), outputs=("logits", "hidden")),
    "a named tuple": Case(returning(Pair), outputs=("hidden", "logits")),
    "a nested dict": Case(returning(lambda h, z: {"of": {"body": h}, "logits": z}), outputs=("of.body", "logits")),
    "a list of one": Case(returning(lambda h, z: [z])),
    "a tuple": Case(
        returning(lambda h, z: (z, h)), outputs=("logits_0", "logits_1"), options={"judged_output": "logits_0"}
    ),
    "one tensor twice": Case(returning(lambda h, z: {"logits": z, "again": z}), outputs=("logits", "again")),
    "a number among them": Case(returning(lambda h, z: {"logits": z, "n": 3}), refused="The output n is int"),
    "a mean over the batch": Case(
        returning(lambda h, z: {"logits": z, "loss": z.mean()}), refused="The output loss of the model is"
    ),
    # inputs
    "two inputs": Case(TwoInputs, inputs=lambda: (flat(), flat(1))),
    "an input left out": Case(TwoInputs, inputs=lambda: (flat(),), exclude=("right",), dense=("right",)),
    "token ids": Case(Tokens, inputs=lambda: (tokens(),), dense=("embed",)),
    # what a row depends on
    "norm by the batch": Case(
        plain(lambda self, h: self.norm(h), norm=lambda: nn.BatchNorm1d(8, track_running_stats=False)),
        refused="depend on the batch that it is in",
    ),
    "norm by the batch, admitted": Case(
        plain(lambda self, h: self.norm(h), norm=lambda: nn.BatchNorm1d(8, track_running_stats=False)),
        options={"batch_size": ROWS},
    ),
    "logits less their mean": Case(returning(lambda h, z: z - z.mean(0)), refused="depend on the batch"),
    "dropout left on": Case(plain(lambda self, h: F.dropout(h)), refused="other outputs for the same inputs"),
    "noise left on": Case(plain(lambda self, h: h + torch.randn_like(h)), refused="other outputs for the same inputs"),
    "a buffer that drifts": Case(Drifting, refused="changes the buffer scale"),
    "dropout that is off": Case(plain(lambda self, h: self.drop(h), drop=nn.Dropout)),
    # buffers and norms
    "a buffer": Case(lambda: Buffers(True)),
    "a buffer that isn't kept": Case(lambda: Buffers(False)),
    "batch norm": Case(plain(lambda self, h: self.norm(h).relu(), norm=lambda: nn.BatchNorm1d(8))),
    "layer norm": Case(plain(lambda self, h: self.norm(h), norm=lambda: nn.LayerNorm(8))),
    "group norm": Case(lambda: Convolutions(nn.GroupNorm(2, 8)), inputs=lambda: (images(),)),
    "instance norm": Case(lambda: Convolutions(nn.InstanceNorm2d(8, affine=True)), inputs=lambda: (images(),)),
    "rms norm": Case(plain(lambda self, h: self.norm(h), norm=lambda: nn.RMSNorm(8))),
    # weights
    "tied weights": Case(lambda: Tied(True), refused="are one parameter"),
    "tied weights, excluded": Case(lambda: Tied(True), exclude=("one", "two"), dense=("one", "two")),
    "a layer called twice": Case(CalledTwice),
    "a weight used by itself": Case(Functional, dense=("own",)),
    "a version of its own": Case(lambda: nn.Sequential(Versioned(6, 8), nn.ReLU(), nn.Linear(8, 4))),
    "parametrized": Case(with_head(parametrizations.weight_norm), refused="computed"),
    "parametrized, excluded": Case(with_head(parametrizations.weight_norm), exclude=("head",)),
    "old weight norm, excluded": Case(with_head(nn.utils.weight_norm), exclude=("head",)),  # type: ignore[arg-type]
    "pruned by torch": Case(with_head(lambda m: prune.l1_unstructured(m, "weight", 0.5)), refused="prune.remove"),  # type: ignore[no-untyped-call]
    # layers
    "attention": Case(Attention, inputs=lambda: (sequences(),)),
    "a transformer layer": Case(Encoder, inputs=lambda: (sequences(),), dense=("position",)),
    "an LSTM": Case(Recurrent, inputs=lambda: (sequences(),), dense=("lstm.weight_ih_l0", "lstm.weight_hh_l0")),
    "a transposed convolution": Case(
        lambda: Convolutions(nn.ConvTranspose2d(8, 8, 2, 2)), inputs=lambda: (images(),), dense=("rest.0",)
    ),
    "a depthwise convolution": Case(
        lambda: Convolutions(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()), inputs=lambda: (images(),)
    ),
    "pooling with indices, by keyword": Case(WithIndices, inputs=lambda: (images(),)),
    "sine before a layer": Case(lambda: nn.Sequential(Sine(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))),
    # control flow, compilers
    "a loop over layers": Case(Looped),
    "a branch on values": Case(BranchOnValues, refused="can't be exported to ONNX"),
    "a compiled part": Case(compiled_part),
    "a scripted part": Case(Scripted, refused="inner is TorchScript, which can't be exported"),
}


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x * math.pi)
