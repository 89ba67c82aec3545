"""Kernels are the same for all networks: each set of them is compiled once in a process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from acdc_export.native import Library, toolchain
from acdc_export.native import tune as tuning
from acdc_export.native.layout import Layout
from acdc_export.native.plan import Plan

from .conftest import HERE, build
from .networks import Net


def network(seed: int) -> Net:
    net = Net((3, 9, 9), seed=seed)
    net.outputs.append(net.conv("x0", 16, density=0.3))
    return net


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is compiled: names of objects."""
    monkeypatch.setattr(toolchain, "compiled_kernels", {})
    monkeypatch.setattr(toolchain, "FLAGS", (*toolchain.FLAGS, "-O0"))  # quick to compile
    names: list[str] = []
    run = toolchain._run

    def note(command: Sequence[str], folder: Path) -> None:
        names.append(command[-1])
        run(command, folder)

    monkeypatch.setattr(toolchain, "_run", note)
    return names


def test_kernels_are_compiled_once(compiled: list[str], tmp_path: Path) -> None:
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        build(network(seed).model(), tmp_path / str(seed), ["avx2"])
    assert sorted(compiled) == ["./net.so", "./net.so", "avx2.o", "common.o", "common.o"]


def test_other_flags_and_other_compilers_are_other_kernels(
    compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(network(1).model(), tmp_path, ["avx2"])
    monkeypatch.setattr(toolchain, "FLAGS", (*toolchain.FLAGS, "-DOTHER"))
    build(network(1).model(), tmp_path, ["avx2"])
    monkeypatch.setenv("CC", f"{toolchain.compiler()[0]} -O0")
    build(network(1).model(), tmp_path, ["avx2"])
    assert compiled.count("avx2.o") == 3


def test_cc_is_taken_with_its_options(compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As make does."""
    monkeypatch.setenv("CC", f"{toolchain.compiler()[0]} -DCC_IS_TAKEN -O0")
    assert toolchain.compiler()[1:] == ["-DCC_IS_TAKEN", "-O0"]


# ---------------------------------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("forced", ["", HERE[-1], "nonsense"])
def test_what_is_measured_is_what_runs(forced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries heed the variable that forces an instruction set, and so does measuring."""
    monkeypatch.setenv("MODEL_INSTRUCTION_SET", forced)
    plans = []

    def tuned(layout: Layout, plan: Plan) -> Plan:
        plans.append(tuning.tuned(layout, plan.instruction_sets, 2, tmp_path))
        return plans[-1]

    built = build(network(1).model(), tmp_path, HERE, tuned)
    assert [plan.measured_on for plan in plans] == [{"": HERE[0], "nonsense": None}.get(forced, forced)]
    assert set(plans[0].choices) == {at for at, step in enumerate(built.layout.steps) if step.kind == "PRODUCT"}
    monkeypatch.delenv("MODEL_INSTRUCTION_SET")
    with Library(built.path) as library:
        assert library.instruction_set == HERE[0]
