"""Runtimes in interpreters and processes of their own, behind the `Engine` protocol of `acdc_export.evidence`."""

from .building import Built
from .environment import Environment, Status, ensure, status
from .home import home
from .installed import InstalledTarget
from .worker import Timeouts, Worker, open_engine

__all__ = [
    "Built",
    "Environment",
    "InstalledTarget",
    "Status",
    "Timeouts",
    "Worker",
    "ensure",
    "home",
    "open_engine",
    "status",
]
