"""The halves of one pair in several deployments, side by side: which one to serve, and why."""

from .record import Candidate, Comparison
from .writing import MARKER, as_markdown, render, to_json, write

__all__ = ["MARKER", "Candidate", "Comparison", "as_markdown", "render", "to_json", "write"]
