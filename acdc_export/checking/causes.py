"""Why the new bundle is faster or slower than the old one: the model, the export, or the engine.

The three are told apart by what each leaves alone. A denser model has fewer zeros (counted), which its twin does not
feel. A worse export has other operators, or fewer of them on the fast path, around the same zeros. A slower engine
slows the dense twin too; where network and operators are the same, nothing else does.
"""

from __future__ import annotations

from ..evidence.gates import Measurement
from ..evidence.latency import Latency
from ..records.check import BundleFacts, Cause, Where


def find(new: BundleFacts, old: BundleFacts, sparse: Latency, twins: Latency | None) -> tuple[Cause, ...]:
    """What differs between the bundles, and, where the new one is slower beyond doubt, what that leaves as cause."""
    export = _export(new, old)
    alike = not export and new.total == old.total  # so what slows the twins is the engine
    found = [*_model(new, old), *export, *_engine(new, old)]
    twin = twins.ratios.get("new") if twins else None
    if twin:
        found.append(_twins(twin, alike))
    ratio = sparse.ratios.get("new")
    slower = ratio is not None and ratio.low > 1
    if slower and not found[: -1 if twin else None] and not (twin and twin.low > 1):
        found.append(
            Cause(
                "unknown",
                "Zeros, operators and versions are the same: look at what they don't show, such as the order of the "
                "graph or the engine's settings.",
            )
        )
    return tuple(found)


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
    found = []
    names = sorted({*new.operators, *old.operators})
    changed = [name for name in names if new.operators.get(name, 0) != old.operators.get(name, 0)]
    if changed:
        listing = ", ".join(f"{name} {old.operators.get(name, 0)} → {new.operators.get(name, 0)}" for name in changed)
        found.append(Cause("export", f"The graph has other operators: {listing}."))
    if None not in (new.supported_ops, old.supported_ops) and new.supported_ops != old.supported_ops:
        found.append(
            Cause(
                "export",
                f"The engine has {new.supported_ops:.4g} of the operators on its fast path, {old.supported_ops:.4g} "
                "of the old one's.",
            )
        )
    if new.precision != old.precision:
        found.append(Cause("export", f"The precision is {new.precision}, and was {old.precision}."))
    return found


def _engine(new: BundleFacts, old: BundleFacts) -> list[Cause]:
    found = []
    if (new.runtime, new.version) != (old.runtime, old.version):
        found.append(
            Cause("engine", f"The runtime is {new.runtime} {new.version}, and was {old.runtime} {old.version}.")
        )
    names = sorted({*new.locked, *old.locked})
    changed = [name for name in names if new.locked.get(name) != old.locked.get(name)]
    if changed:
        listing = ", ".join(f"{name} {old.locked.get(name, '-')} → {new.locked.get(name, '-')}" for name in changed)
        found.append(Cause("engine", f"Its environment differs: {listing}."))
    if new.target_sha256 != old.target_sha256:
        found.append(Cause("engine", "The target is defined otherwise: engine.py, target.toml or what lies beside."))
    return found


def _twins(ratio: Measurement, alike: bool) -> Cause:
    """What the dense twins tell; `alike` are those of the same network, exported to the same operators."""
    shown = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    shared = "the engine, is" if alike else "network, export or engine, is"
    where: Where = "engine" if alike else "unknown"
    if ratio.low > 1:
        return Cause(
            where, f"The dense twin is slower too, {shown} times as long: what both halves share, {shared} slower."
        )
    if ratio.high < 1:
        return Cause(
            where, f"The dense twin is faster, {shown} times as long: what both halves share, {shared} faster."
        )
    return Cause("engine", f"The dense twin takes {shown} times as long: nothing says that the engine changed.")
