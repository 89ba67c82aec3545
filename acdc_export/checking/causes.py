"""Why the new bundle is faster or slower than the old one: the model, the export, or the engine.

A denser model has fewer zeros, which are counted; its twin stays as fast. A worse export has other operators, or fewer
on the fast path, around the same zeros. A slower engine slows the dense twin too. Where network and operators are the
same, nothing else slows the twin.
"""

from __future__ import annotations

from ..evidence.gates import Measurement
from ..evidence.latency import Latency
from ..records.check import BundleFacts, Cause, Where


def find(new: BundleFacts, old: BundleFacts, sparse: Latency, twins: Latency | None) -> tuple[Cause, ...]:
    """What differs between the bundles. A slowdown that is beyond doubt but has no such cause gets an unknown one."""
    model_causes, export_causes, engine_causes = _model(new, old), _export(new, old), _engine(new, old)
    causes = [*model_causes, *export_causes, *engine_causes]
    ratio, twin_ratio = sparse.ratios.get("new"), twins.ratios.get("new") if twins else None
    slower = ratio is not None and ratio.low > 1
    twin_slower = twin_ratio is not None and twin_ratio.low > 1
    unexplained = slower and not causes and not twin_slower
    if twin_ratio:
        causes.append(_twins(twin_ratio, same_network=not export_causes and new.total == old.total))
    if unexplained:
        causes.append(
            Cause(
                "unknown",
                "Zeros, operators and versions are the same: look at what they don't show, such as the order of the "
                "graph or the engine's settings.",
            )
        )
    return tuple(causes)


def _model(new: BundleFacts, old: BundleFacts) -> list[Cause]:
    if new.sparsity is None or old.sparsity is None or (new.zeros, new.total) == (old.zeros, old.total):
        return []
    than = "denser" if new.sparsity < old.sparsity else "sparser" if new.sparsity > old.sparsity else "of another size"
    return [
        Cause(
            "model",
            f"The model is {than}: {100 * new.sparsity:.2f} % zeros in its pruned layers of {new.total:,} weights, "
            f"{100 * old.sparsity:.2f} % of {old.total:,} in the old one.",
        )
    ]


def _export(new: BundleFacts, old: BundleFacts) -> list[Cause]:
    causes = []
    names = sorted({*new.operators, *old.operators})
    changed = [name for name in names if new.operators.get(name, 0) != old.operators.get(name, 0)]
    if changed:
        listing = ", ".join(f"{name} {old.operators.get(name, 0)} → {new.operators.get(name, 0)}" for name in changed)
        causes.append(Cause("export", f"The graph has other operators: {listing}."))
    if None not in (new.supported_ops, old.supported_ops) and new.supported_ops != old.supported_ops:
        causes.append(
            Cause(
                "export",
                f"The engine has {new.supported_ops:.4g} of the operators on its fast path, {old.supported_ops:.4g} "
                "of the old one's.",
            )
        )
    if new.precision != old.precision:
        causes.append(Cause("export", f"The precision is {new.precision}, and was {old.precision}."))
    return causes


def _engine(new: BundleFacts, old: BundleFacts) -> list[Cause]:
    causes = []
    if (new.runtime, new.version) != (old.runtime, old.version):
        causes.append(
            Cause("engine", f"The runtime is {new.runtime} {new.version}, and was {old.runtime} {old.version}.")
        )
    names = sorted({*new.locked, *old.locked})
    changed = [name for name in names if new.locked.get(name) != old.locked.get(name)]
    if changed:
        listing = ", ".join(f"{name} {old.locked.get(name, '-')} → {new.locked.get(name, '-')}" for name in changed)
        causes.append(Cause("engine", f"Its environment differs: {listing}."))
    if new.target_sha256 != old.target_sha256:
        causes.append(Cause("engine", "The target is defined otherwise: engine.py, target.toml or what lies beside."))
    return causes


def _twins(ratio: Measurement, same_network: bool) -> Cause:
    """What the dense twins tell. Only the engine slows twins of the `same_network`, exported to the same operators."""
    shown = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    shared = "the engine, is" if same_network else "network, export or engine, is"
    where: Where = "engine" if same_network else "unknown"
    if ratio.low > 1:
        return Cause(
            where, f"The dense twin is slower too, {shown} times as long: what both halves share, {shared} slower."
        )
    if ratio.high < 1:
        return Cause(
            where, f"The dense twin is faster, {shown} times as long: what both halves share, {shared} faster."
        )
    return Cause("engine", f"The dense twin takes {shown} times as long: nothing says that the engine changed.")
