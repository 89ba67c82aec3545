"""Stage 3: where tensors lie in memory, and the loops over it.

A tensor is a row of planes: one for each channel in FP32, one for four channels in uint8, so that a pixel is always a
word of four bytes. A convolution that moves by single pixels reads every input of an output at a constant distance, if
there is a border around each plane; a border at the right of a row is the border at the left of the next. One that
moves by s pixels reads from a copy that is split into s x s phases: within a phase, it moves by single ones.

So each layer becomes one step, with another before it where an input has to be copied into another layout. Borders are
written once, when a model is created; tensors share memory if they are not needed at the same time, and those with a
border only if theirs is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import GraphError
from .layers import (
    Affine,
    AnyLayer,
    Binary,
    Concat,
    Dequantize,
    Function,
    Network,
    Pad,
    Pool,
    Product,
    Quantize,
    Reshape,
    Softmax,
    Table,
    Tensor,
    Window,
)

_LINE = 16  # words of a cache line
_ADDRESSABLE = 2**29  # words: distances are 32 bits wide, and some are added
_SMALLER = f"The target native has {_ADDRESSABLE * 4 // 2**30} GiB for the activations of a sample."
_MOST_COPIES = 5  # of a tensor, shifted against each other
_MOST_WORDS = 2**18  # of all copies, half of a level 2 cache of 2 MB
_SPARE = 1.2  # so much longer may rows become to fill cache lines


@dataclass(frozen=True)
class Form:
    """How a tensor is laid out: phases, border (top, left, bottom, right) and its value; None where there is none.

    With phases, the border before the first pixel is a part of the first phase's plane.
    """

    phases: tuple[int, int] = (1, 1)
    held: int = 1  # so many of them, the first ones
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    value: float | None = None
    shifts: tuple[int, ...] = (0,)  # copies of it, each so many pixels to the left
    inner: tuple[int, int, int, int] = (0, 0, 0, 0)  # of what Pad makes: its pixels that are never written, either

    @property
    def bordered(self) -> bool:
        return self.value is not None


@dataclass
class Storage:
    """Memory of one tensor in one form, in words. `base` is the address of its first pixel, set at the end."""

    tensor: Tensor
    form: Form
    planes: int  # phases included
    rows: int  # of a plane, or of a phase of it
    columns: int
    pitch: int
    plane: int
    origin: int  # from the start of the memory to the first pixel, of the copy without shift
    copy_distance: int
    words: int
    first: int = -1  # step that writes it
    last: int = -1  # last step that reads it
    base: int = 0

    @property
    def view(self) -> tuple[int, int, int]:
        return self.base, self.plane, self.pitch

    @property
    def bordered(self) -> bool:
        return self.form.value is not None

    @property
    def kind(self) -> tuple[Any, ...]:
        """What storages must have in common to share memory with their borders."""
        real = self.tensor.quantized is None  # the value of a border has other bits then
        return self.form, real, self.rows, self.columns, self.pitch, self.plane, self.origin, self.copy_distance


@dataclass
class Step:
    """One loop over memory: a layer, or a copy into another form, with the storages that it reads and writes."""

    kind: str  # of steps.h
    name: str
    operator: str
    layer: AnyLayer | None
    reads: list[Storage]
    writes: Storage | None
    port: int = -1  # of the network's inputs or outputs, where it has to do with those


@dataclass
class Layout:
    """Steps in order of execution, and the memory that they need."""

    network: Network
    steps: list[Step] = field(default_factory=list)
    words: int = 0
    borders: list[tuple[int, int, Tensor, float]] = field(default_factory=list)  # start, words, tensor, value


def lay_out(network: Network) -> Layout:
    """Return the steps of a network, and where each of its tensors lies.

    Raises:
        GraphError: it takes more memory than can be addressed.
    """
    for tensor in network.tensors.values():
        if tensor.size > _ADDRESSABLE:
            raise GraphError(f"The tensor {tensor.name} has {tensor.size:,} values for a sample.", _SMALLER)
    layout = _Builder(unflattened(network)).run()
    if layout.words > _ADDRESSABLE:
        raise GraphError(f"A sample takes {layout.words * 4 / 2**30:,.0f} GiB of memory.", _SMALLER)
    return layout


def unflattened(network: Network) -> Network:
    """Let products behind a flattened tensor read its rows and columns as a window that covers them."""
    shapes = network.tensors
    flattened = {layer.output: layer.inputs[0] for layer in network.layers if isinstance(layer, Reshape)}
    layers: list[AnyLayer] = []
    for layer in network.layers:
        source = flattened.get(layer.inputs[0]) if isinstance(layer, Product) else None
        if isinstance(layer, Product) and source is not None and layer.weights.shape[2:] == (1, 1):
            given, flat = shapes[source].shape, shapes[layer.inputs[0]].shape
            if flat == (int(np.prod(given)), 1, 1) and layer.groups == 1 and layer.window == Window():
                weights = layer.weights.reshape(len(layer.weights), *given)
                inputs = (source, *layer.inputs[1:])
                layer = replace(layer, inputs=inputs, weights=weights, window=Window(kernel=given[1:]))
        layers.append(layer)
    read = {name for layer in layers for name in layer.inputs} | set(network.outputs)
    return replace(network, layers=tuple(layer for layer in layers if layer.output in read))


class _Builder:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.layout = Layout(network)
        self.storages: dict[tuple[str, Form], Storage] = {}
        self.primary: dict[str, Form] = {}
        self.aliases: dict[str, str] = {}
        for layer in network.layers:
            shapes = network.tensors[layer.inputs[0]].shape, network.tensors[layer.output].shape
            if isinstance(layer, Reshape) and shapes[0] == shapes[1]:
                self.aliases[layer.output] = layer.inputs[0]
        self.loaded = {  # uint8 tensors that are made straight from an input
            layer.output: layer.inputs[0]
            for layer in network.layers
            if isinstance(layer, Quantize) and self.source(layer.inputs[0]) in network.inputs
        }

    def run(self) -> Layout:
        self.choose_forms()
        for layer in self.network.layers:
            if layer.output in self.aliases or layer.output in self.loaded:
                continue
            if isinstance(layer, Concat):
                self.join(layer)
            else:
                self.step(layer)
        for port, name in enumerate(self.network.outputs):
            self.add("STORE", f"output {name}", "Output", None, [self.plain(name)], None, port)
        _place(self.layout, list(self.storages.values()))
        return self.layout

    def source(self, name: str) -> str:
        while name in self.aliases:
            name = self.aliases[name]
        return name

    def tensor(self, name: str) -> Tensor:
        return self.network.tensors[self.source(name)]

    # Forms.

    def choose_forms(self) -> None:
        """The primary form of each tensor: with the border that its readers need, if they agree on its value."""
        wanted: dict[str, list[Form]] = {}
        for layer in self.network.layers:
            if (form := self.wanted(layer)) is not None:
                wanted.setdefault(self.source(layer.inputs[0]), []).append(form)
        for layer in self.network.layers:
            name = self.source(layer.output)
            if isinstance(layer, Pad):
                self.primary[name] = Form(value=layer.value, inner=layer.pads)
                continue
            forms = [form for form in wanted.get(name, []) if form.phases == (1, 1) and form.value is not None]
            shifts = self.shifts(layer, forms)
            if forms and all(form.value == forms[0].value for form in forms):
                sides = zip(*(form.border for form in forms), strict=True)
                top, left, bottom, right = (max(side) for side in sides)
                self.primary[name] = Form(border=(top, left, bottom, right), value=forms[0].value, shifts=shifts)

    def shifts(self, layer: AnyLayer, forms: list[Form]) -> tuple[int, ...]:
        """The copies of what a layer makes: those that all of its readers want, if its kernel can write them."""
        shifts = {form.shifts for form in forms}
        shape = self.tensor(layer.output).shape
        if len(shifts) != 1 or not isinstance(layer, Product) or shape[1] * shape[2] == 1:
            return (0,)
        return shifts.pop()

    def wanted(self, layer: AnyLayer) -> Form | None:
        """The form in which a layer wants its first input; None if any without phases serves."""
        if not isinstance(layer, Product | Pool):
            return None
        tensor, out = self.tensor(layer.inputs[0]), self.tensor(layer.output).shape
        if isinstance(layer, Pool) and is_whole(layer, tensor):
            return None
        window = layer.window
        top, left = window.pads[:2]
        steps = zip(out[1:], window.strides, window.kernel, window.dilations, strict=True)
        bottom, right = (
            max((count - 1) * stride + (size - 1) * dilation + 1 - before - have, 0)
            for (count, stride, size, dilation), before, have in zip(steps, (top, left), tensor.shape[1:], strict=True)
        )
        if isinstance(layer, Product):  # its output's rows, as far apart as the input's, must not overlap
            right = max(right, out[2] - tensor.shape[2])
        border = (top, left, bottom, right)
        zero = 0.0 if tensor.quantized is None else float(tensor.quantized.zero)
        if isinstance(layer, Pool) and layer.kind == "max":
            zero = -np.inf if tensor.quantized is None else 0.0
        if isinstance(layer, Pool) or all(
            count == 1 or stride == 1 for count, stride in zip(out[1:], window.strides, strict=True)
        ):
            if not any(border):
                return None
            return Form(border=border, value=zero, shifts=_shifts(layer, tensor, out))  # pools move by any number
        read = [(size - 1) * dilation for size, dilation in zip(window.kernel, window.dilations, strict=True)]
        held = 1 if read == [0, 0] else window.strides[0] * window.strides[1]
        return Form(window.strides, held, border, zero)

    def form_of(self, name: str) -> Form:
        return self.primary.get(self.source(name), Form())

    def plain(self, name: str) -> Storage:
        """The primary storage of a tensor, loaded if it is an input of the network."""
        name = self.source(name)
        key = (name, self.form_of(name))
        if key not in self.storages:
            origin = self.loaded.get(name, name)
            if self.source(origin) not in self.network.inputs:
                raise AssertionError(f"{name} is read before it is made")
            self.load(name, self.source(origin), self.form_of(name))
        return self.storages[key]

    def storage(self, name: str, form: Form) -> Storage:
        name = self.source(name)
        if (name, form) not in self.storages:
            self.storages[name, form] = _storage(self.network.tensors[name], form)
        return self.storages[name, form]

    def input_of(self, layer: AnyLayer) -> Storage:
        """The first input of a layer in the form that it wants: the primary one if that has it, or a copy."""
        name = self.source(layer.inputs[0])
        form = self.wanted(layer)
        have = self.form_of(name)
        if form is None or _serves(have, form):
            return self.plain(name)
        form = replace(form, shifts=(0,))
        if (name, form) in self.storages:
            return self.storages[name, form]
        origin = self.source(self.loaded.get(name, name))
        if origin in self.network.inputs:
            self.load(name, origin, form)
        else:
            source = self.plain(name)
            self.add("RELAYOUT", layer.name, "Copy", None, [source], self.storage(name, form))
        return self.storages[name, form]

    # Steps.

    def add(
        self, kind: str, name: str, operator: str, layer: AnyLayer | None, reads: list[Storage],
        writes: Storage | None, port: int = -1,
    ) -> None:  # fmt: skip
        self.layout.steps.append(Step(kind, name, operator, layer, reads, writes, port))

    def load(self, name: str, origin: str, form: Form) -> None:
        """Load an input of the network, once for each form that its readers want."""
        tensor = self.network.tensors[name]
        kind = "LOAD" if tensor.quantized is None else "LOAD_U8"
        port = self.network.inputs.index(origin)
        self.add(kind, f"input {origin}", "Input", None, [], self.storage(name, form), port)

    def step(self, layer: AnyLayer) -> None:
        if isinstance(layer, Reshape):
            reads = [self.plain(layer.inputs[0])]
        elif isinstance(layer, Product | Pool):
            reads = [self.input_of(layer), *(self.plain(name) for name in layer.inputs[1:])]
        else:
            reads = [self.plain(name) for name in layer.inputs]
        kind = _KINDS[type(layer)]
        integer = self.tensor(layer.inputs[0]).quantized is not None
        if integer and kind in ("PRODUCT", "POOL", "AFFINE", "BINARY", "RESHAPE"):
            kind += "_U8"
        self.add(kind, layer.name, layer.operator, layer, reads, self.storage(layer.output, self.form_of(layer.output)))

    def join(self, layer: Concat) -> None:
        writes = self.storage(layer.output, self.form_of(layer.output))
        kind = "JOIN" if self.tensor(layer.output).quantized is None else "JOIN_U8"
        for at, name in enumerate(layer.inputs):
            self.add(kind, layer.name, layer.operator, layer, [self.plain(name)], writes, at)


_KINDS: dict[type[Any], str] = {
    Product: "PRODUCT",
    Pool: "POOL",
    Affine: "AFFINE",
    Function: "FUNCTION",
    Table: "TABLE_U8",
    Binary: "BINARY",
    Reshape: "RESHAPE",
    Pad: "RELAYOUT",
    Softmax: "SOFTMAX",
    Quantize: "QUANTIZE",
    Dequantize: "DEQUANTIZE",
}


def is_whole(layer: Pool, tensor: Tensor) -> bool:
    """Whether a pool has one window, which is the whole plane."""
    return layer.window.kernel == tensor.shape[1:] and not any(layer.window.pads)


def _serves(have: Form, form: Form) -> bool:
    if form.phases != (1, 1):
        return have == form
    if not any(form.border):
        return True
    if have.shifts != (0,) and have.shifts != form.shifts:
        return False
    return have.value == form.value and all(a >= b for a, b in zip(have.border, form.border, strict=True))


def _shifts(layer: Product | Pool, tensor: Tensor, out: tuple[int, int, int]) -> tuple[int, ...]:
    """The copies that let a convolution read along whole cache lines, where rows fill them well enough."""
    window = layer.window
    shifts = tuple(at * window.dilations[1] - window.pads[1] for at in range(window.kernel[1]))
    rounded = -(-tensor.shape[2] // _LINE) * _LINE
    fits = isinstance(layer, Product) and window.kernel[1] <= _MOST_COPIES and out[2] == tensor.shape[2]
    words = len(shifts) * -(-tensor.shape[0] // lanes(tensor)) * tensor.shape[1] * rounded
    if not fits or 0 not in shifts or len(shifts) == 1 or rounded > _SPARE * tensor.shape[2] or words > _MOST_WORDS:
        return (0,)
    return shifts


def lanes(tensor: Tensor) -> int:
    """Channels in a plane."""
    return 1 if tensor.quantized is None else 4


def _storage(tensor: Tensor, form: Form) -> Storage:
    channels, height, width = tensor.shape
    planes = -(-channels // lanes(tensor))
    top, left, bottom, right = form.border
    if form.phases != (1, 1):
        down, across = form.phases
        rows, columns = -(-(top + height + bottom) // down), -(-(left + width + right) // across)
        plane = _apart(rows * columns)
        count = planes * form.held
        return Storage(tensor, form, count, rows, columns, columns, plane, 0, 0, count * plane)
    if not form.bordered:
        plane = 1 if height * width == 1 else _apart(height * width)
        return Storage(tensor, form, planes, height, width, width, plane, 0, 0, planes * plane)
    if form.shifts != (0,):
        pitch = -(-width // _LINE) * _LINE
        plane = _apart((top + height + bottom) * pitch)
        origin, distance = top * pitch, planes * plane
        first = origin + form.shifts.index(0) * distance
        return Storage(tensor, form, planes, height, width, pitch, plane, first, distance, len(form.shifts) * distance)
    pitch = width + max(left, right)
    origin = top * pitch + left
    plane = _apart(origin + (height + bottom) * pitch + right)
    return Storage(tensor, form, planes, height, width, pitch, plane, origin, 0, planes * plane)


def _apart(words: int) -> int:
    """A distance of planes: whole cache lines, an odd number of them, since caches map every 2^n lines to one place."""
    count = -(-words // _LINE)
    return _LINE * (count | 1)


def _place(layout: Layout, storages: list[Storage]) -> None:
    """Give each storage its address. Those with a border share memory with their kind only."""
    for at, step in enumerate(layout.steps):
        for storage in (*step.reads, *([step.writes] if step.writes else [])):
            storage.first = at if storage.first < 0 else storage.first
            storage.last = max(storage.last, at)
    used = [storage for storage in storages if storage.first >= 0]
    always: list[tuple[Storage, int, list[Storage]]] = []
    for storage in sorted((s for s in used if s.bordered), key=lambda s: s.first):
        for at, (head, words, sharers) in enumerate(always):
            if head.kind == storage.kind and all(_apart_in_time(storage, other) for other in sharers):
                always[at] = (head, max(words, storage.words), [*sharers, storage])
                break
        else:
            always.append((storage, storage.words, [storage]))
    top = 0
    for head, words, sharers in always:
        for storage in sharers:
            storage.base = top + storage.origin
        layout.borders.append((top, words, head.tensor, float(head.form.value or 0.0)))
        top += _apart(words)
    placed: list[Storage] = []
    end = top
    for storage in sorted((s for s in used if not s.bordered), key=lambda s: (-s.words, s.first)):
        taken = sorted(
            (other.base, other.base + _apart(other.words)) for other in placed if not _apart_in_time(storage, other)
        )
        storage.base = _gap(taken, top, _apart(storage.words))
        end = max(end, storage.base + _apart(storage.words))
        placed.append(storage)
    layout.words = end + _LINE


def _apart_in_time(storage: Storage, other: Storage) -> bool:
    return storage.last < other.first or other.last < storage.first


def _gap(taken: Iterable[tuple[int, int]], start: int, words: int) -> int:
    """The first address from `start` on at which so many words are free."""
    for (_, end), (following, _) in pairwise([(start, start), *taken, (1 << 62, 1 << 62)]):
        start = max(start, end)
        if following - start >= words:
            break
    return start
