"""What is shown of a verification: whether a bundle works here as it did where it was made."""

from __future__ import annotations

from ..records.verification import Verification
from .document import Document
from .format import basis, gate_table


def document(verification: Verification) -> Document:
    """The verdict, a line a check, and notes."""
    notes = (basis((), verification.notes),) if verification.notes else ()
    return Document(
        headline=f"{verification.bundle} on this machine: {verification.verdict.upper()}",
        status=verification.verdict,
        summary=(),
        sections=(gate_table(verification.checks, "Checks"), *notes),
    )
