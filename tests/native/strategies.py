"""Networks and plans that hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from acdc_export.native.layout import Layout
from acdc_export.native.plan import (
    DENSE,
    LARGEST_TILE,
    OUTPUTS,
    SPARSE,
    Choice,
    Plan,
    Tiling,
    is_integer,
    is_product,
    kernels,
    width,
)

from .conftest import Choose
from .networks import Net

Draw = Callable[[st.SearchStrategy[object]], object]

DENSITIES = (0.0, 0.03, 0.1, 0.3, 0.6, 1.0)
FUNCTIONS = ("LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Elu", "Abs", "Silu")


@st.composite
def networks(draw: st.DrawFn, most: int = 6) -> Net:
    """A network of up to so many blocks, of odd shapes. All that can be uint8 is a point, but for its outputs."""
    rank = draw(st.sampled_from((2, 2, 2, 1)))
    sizes = [draw(st.integers(1, 19)) for _ in range(rank)]
    if draw(st.booleans()):  # rows that fill cache lines, or nearly
        sizes[-1] = draw(st.sampled_from((14, 15, 16, 28, 31, 32)))
    shape = (draw(st.integers(1, 21)), *sizes)
    net = Net(shape, seed=draw(st.integers(0, 2**16)))
    tensors = ["x0"]
    for _ in range(draw(st.integers(1, most))):
        tensors.append(draw(st.sampled_from(_BLOCKS))(draw, net, draw(st.sampled_from(tensors[-3:]))))
    last = tensors[-1]
    if draw(st.booleans()):
        if draw(st.booleans()):
            last = net.point(net.global_pool(last), same=last if draw(st.booleans()) else None)
        last = net.gemm(
            net.point(net.flatten(last), same=last), draw(st.integers(1, 37)), draw(st.sampled_from(DENSITIES)),
            draw(st.booleans()), draw(st.booleans()),
        )  # fmt: skip
    else:
        last = net.function(last, "Identity")
    net.outputs.append(last)
    if len(tensors) > 2 and draw(st.booleans()):
        net.outputs.append(net.function(tensors[-2], "Identity"))
    return net


def _activation(draw: st.DrawFn, net: Net, x: str) -> str:
    """An activation and its point: in the loop of what is before, or a table with a point before it, too."""
    kind = draw(st.sampled_from(("none", "Relu", "Clip", *FUNCTIONS)))
    if kind == "none":
        return net.point(x)
    if kind == "Relu":
        return net.point(net.function(x, "Relu"))
    if kind == "Clip":
        return net.point(net.clip(x, draw(st.sampled_from((0.0, -0.5))), draw(st.sampled_from((6.0, 1.0)))))
    net.point(x)
    if kind == "Silu":
        return net.point(net.binary("Mul", x, net.function(x, "Sigmoid")))
    return net.point(net.function(x, kind))


def _conv(draw: st.DrawFn, net: Net, x: str) -> str:
    channels, *sizes = net.shapes[x]
    kernel = [draw(st.integers(1, 4)) for _ in sizes]
    dilations = [draw(st.sampled_from((1, 1, 2, 3))) for _ in sizes]
    strides = [draw(st.sampled_from((1, 1, 2, 3))) for _ in sizes]
    before = [draw(st.integers(0, 3)) for _ in sizes]
    after = [
        max(draw(st.integers(0, 3)), (k - 1) * d + 1 - size - b)
        for size, k, d, b in zip(sizes, kernel, dilations, before, strict=True)
    ]
    if draw(st.booleans()):  # what networks have most often
        kernel, dilations = [3] * len(sizes), [1] * len(sizes)
        before = after = [1] * len(sizes)
    groups = draw(st.sampled_from([size for size in range(1, channels + 1) if channels % size == 0] + [1] * 3))
    outputs = groups * draw(st.integers(1, max(1, 24 // groups)))
    y = net.conv(
        x, outputs, kernel, strides=strides, pads=[*before, *after], dilations=dilations, groups=groups,
        bias=draw(st.booleans()), density=draw(st.sampled_from(DENSITIES)), uneven=draw(st.booleans()),
    )  # fmt: skip
    if draw(st.booleans()):
        y = net.batch_norm(y)
    return _activation(draw, net, y)


def _residual(draw: st.DrawFn, net: Net, x: str) -> str:
    channels = net.shapes[x][0]
    inner = net.conv(x, channels, 3, density=draw(st.sampled_from(DENSITIES)))
    if draw(st.booleans()):
        inner = net.conv(net.point(net.function(inner, "Relu")), channels, 1, density=draw(st.sampled_from(DENSITIES)))
    operands = draw(st.permutations((inner, x)))
    y = net.binary("Add", *operands)
    return net.point(net.function(y, "Relu") if draw(st.booleans()) else y)


def _pool(draw: st.DrawFn, net: Net, x: str) -> str:
    _, *sizes = net.shapes[x]
    kind = draw(st.sampled_from(("MaxPool", "AveragePool")))
    kernel = [draw(st.integers(1, min(3, size))) for size in sizes]
    strides = [draw(st.integers(1, 3)) for _ in sizes]
    pads = [draw(st.integers(0, k - 1)) for k in kernel] + [draw(st.integers(0, k - 1)) for k in kernel]
    extra = {"count_include_pad": draw(st.integers(0, 1))} if kind == "AveragePool" else {}
    y = net.pool(x, kind, kernel, strides, pads, draw(st.integers(0, 1)), **extra)
    return net.point(y, same=x if draw(st.booleans()) else None)


def _whole(draw: st.DrawFn, net: Net, x: str) -> str:
    y = net.global_pool(x, draw(st.sampled_from(("GlobalAveragePool", "GlobalMaxPool"))))
    return net.point(y, same=x if draw(st.booleans()) else None)


def _gate(draw: st.DrawFn, net: Net, x: str) -> str:
    return net.point(net.squeeze_excite(x, draw(st.sampled_from(("Sigmoid", "HardSigmoid")))))


def _join(draw: st.DrawFn, net: Net, x: str) -> str:
    other = net.point(net.conv(x, draw(st.integers(1, 9)), 1, density=draw(st.sampled_from(DENSITIES))))
    return net.point(net.concat(*draw(st.permutations((x, other, x)))))


def _pad(draw: st.DrawFn, net: Net, x: str) -> str:
    sides = [[draw(st.integers(0, 2)) for _ in net.shapes[x][1:]] for _ in range(2)]
    y = net.pad(x, *sides, draw(st.sampled_from((0.0, 0.5))))
    if draw(st.booleans()):
        return net.point(net.conv(y, draw(st.integers(1, 9)), 1))
    return net.point(y, same=x)


def _reshape(draw: st.DrawFn, net: Net, x: str) -> str:
    channels, *sizes = net.shapes[x]
    if len(sizes) == 1:
        shape = draw(st.sampled_from(((sizes[0], channels), (channels, sizes[0], 1), (1, channels, sizes[0]))))
    else:
        height, width = sizes
        shape = draw(
            st.sampled_from(((height, channels, width), (channels * height, width), (width, channels * height)))
        )
    return net.point(net.reshape(x, *shape), same=x)


def _channels(draw: st.DrawFn, net: Net, x: str) -> str:
    kind = draw(st.sampled_from(("norm", "Mul", "Add", "Sub")))
    return _activation(draw, net, net.batch_norm(x) if kind == "norm" else net.per_channel(kind, x))


def _pair(draw: st.DrawFn, net: Net, x: str) -> str:
    other = net.point(net.function(x, draw(st.sampled_from(("Sigmoid", "Tanh", "Neg")))))
    y = net.binary(draw(st.sampled_from(("Add", "Sub", "Mul"))), x, other)
    return net.point(net.function(y, "Relu") if draw(st.booleans()) else y)


_BLOCKS = (_conv, _conv, _conv, _residual, _pool, _whole, _gate, _join, _pad, _reshape, _channels, _pair)


@st.composite
def choosers(draw: st.DrawFn) -> Choose:
    """What gives every product of a plan some kernel that can compute it, cut somehow."""
    seeds = draw(st.lists(st.tuples(*[st.integers(0, 2**16)] * 4), min_size=1, max_size=8))

    def choose(layout: Layout, plan: Plan) -> Plan:
        choices = {}
        for at, step in enumerate(layout.steps):
            if not is_product(step):
                continue
            kernel, tile, along, across = seeds[at % len(seeds)]
            able = kernels(step)
            chosen = able[kernel % len(able)]
            groups = -(-len(step.layer.weights) // OUTPUTS[chosen])  # type: ignore[union-attr]
            tilings = {}
            for name in plan.instruction_sets:
                lanes = width(name)
                largest = LARGEST_TILE[lanes][is_integer(step), chosen] if chosen in (SPARSE, DENSE) else 1
                pieces = 1 + along % 5 if chosen in (SPARSE, DENSE) else 1
                tilings[name] = Tiling(1 + tile % largest, pieces, 1 + across % min(groups, 5))
            choices[at] = Choice(chosen, tilings)
        return Plan(plan.instruction_sets, choices, None, plan.threads)

    return choose
