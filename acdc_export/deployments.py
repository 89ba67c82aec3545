"""Which deployments a user means, by the targets and precisions that were named."""

from __future__ import annotations

from collections.abc import Iterable

from . import resources
from .config import Target, load_target
from .errors import RuntimeUnavailable, UsageError, nearest
from .options import ALL, CompareOptions, DeploymentRequest


def single(target: str | Target, precision: str) -> DeploymentRequest:
    """One target at one precision, its default where that is empty. Raises `UsageError` for one that there is not."""
    definition = _definition(target)
    precision = precision or definition.default_precision
    _check_precision(definition, precision)
    return DeploymentRequest(((definition, precision),))


def several(options: CompareOptions) -> DeploymentRequest:
    """Each target at each precision. With `"all"` among the targets, those of them that can run here.

    What a survey of all targets needs is installed now.

    Raises:
        UsageError: an unknown target or precision, two targets of one name.
        RuntimeUnavailable: nothing of a survey can run here.
    """
    survey, precisions = ALL in options.targets, options.precisions
    missing: dict[str, str] = {}
    deployments: dict[str, tuple[Target, str]] = {}
    for target in _definitions(options.targets):
        if survey and (reason := _unavailable(target, options)):
            missing[target.name] = reason
            continue
        offered = list(target.precisions)
        every = ALL in precisions or (survey and not precisions)
        for precision in offered if every else precisions or (target.default_precision,):
            if survey and precision not in offered:
                missing[target.at(precision)] = f"it offers {', '.join(offered)}"
            else:
                _check_precision(target, precision)
                deployments[target.at(precision)] = (target, precision)
    if not deployments:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise RuntimeUnavailable(f"Nothing can be compared here. {reasons}", "`acdc-export targets list` tells more.")
    return DeploymentRequest(tuple(deployments.values()), missing, survey)


def _definitions(targets: Iterable[str | Target]) -> list[Target]:
    """The targets by their names, each once; the built-in ones in place of `"all"`."""
    named = list(targets)
    if ALL in named:
        named = [*resources.names("targets"), *(target for target in named if target != ALL)]
    definitions: dict[str, Target] = {}
    for target in map(_definition, named):
        if definitions.setdefault(target.name, target) != target:
            raise UsageError(f"Two targets are named {target.name}.", "Give one of them another name.")
    return list(definitions.values())


def _definition(target: str | Target) -> Target:
    return load_target(target) if isinstance(target, str) else target


def _unavailable(target: Target, options: CompareOptions) -> str:
    """Why a target can't run here, or build here; empty if it can, and then it is installed."""
    try:
        installed = options.install(target)
        for precision in target.precisions:
            installed.check_build(precision)
    except RuntimeUnavailable as error:
        return error.message
    return ""


def _check_precision(target: Target, precision: str) -> None:
    offered = list(target.precisions)
    if precision not in offered:
        raise UsageError(
            f"The target {target.name} has no precision '{precision}'{nearest(precision, offered)}.",
            f"It offers {', '.join(offered)}.",
        )
