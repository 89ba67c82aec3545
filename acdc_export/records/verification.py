"""What `verify` finds out about a bundle on the machine where it is to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..evidence.gates import Judged, Verdict


@dataclass(frozen=True)
class Verification(Judged):
    """A verdict for each check of a bundle, and notes. A bundle that failed its gates doesn't pass."""

    DERIVED: ClassVar = ("exit_code",)

    bundle: str  # its path
    checks: tuple[Verdict, ...]
    notes: tuple[str, ...]

    @property
    def gates(self) -> tuple[Verdict, ...]:  # type: ignore[override]  # other records hold them as a field
        return self.checks
