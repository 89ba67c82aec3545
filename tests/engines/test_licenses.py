"""The user is asked to accept some licenses, and the answer is remembered."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from acdc_export.config import License, Target
from acdc_export.engines import home, licenses
from acdc_export.errors import RuntimeUnavailable

NOBODY: frozenset[str] = frozenset()


@pytest.fixture
def target(home: Path, community: License, make_target: Callable[..., Target]) -> Target:
    return make_target(license=community)


def never(notice: str) -> bool:
    raise AssertionError("asked")


def test_a_license_that_needs_no_acceptance_is_not_asked_for(home: Path, make_target: Callable[..., Target]) -> None:
    licenses.require(make_target(), NOBODY, never)
    assert not home.exists()


def test_unaccepted_names_the_option(target: Target) -> None:
    with pytest.raises(RuntimeUnavailable) as caught:
        licenses.require(target, frozenset({"another"}), None)
    assert "https://example.org/license" in caught.value.message
    assert "--accept-license fake" in caught.value.remedy


def test_accepted_on_the_command_line_once_is_remembered(target: Target, home: Path) -> None:
    licenses.require(target, frozenset({"fake"}), never)
    licenses.require(target, NOBODY, never)
    record = json.loads((home / "licenses.json").read_text())
    assert record["fake"].keys() == {"license", "url", "accepted"}
    assert [path.name for path in home.iterdir()] == ["licenses.json"]


def test_accepted_by_variable(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not licenses.is_accepted(target)
    monkeypatch.setenv("ACDC_EXPORT_ACCEPT_LICENSE", "another, fake")
    assert licenses.is_accepted(target)
    licenses.require(target, NOBODY, never)
    monkeypatch.delenv("ACDC_EXPORT_ACCEPT_LICENSE")
    assert licenses.is_accepted(target)


def test_asked_with_the_notice_and_the_answer_counts(target: Target) -> None:
    shown: list[str] = []

    def yes(notice: str) -> bool:
        shown.append(notice)
        return True

    with pytest.raises(RuntimeUnavailable):
        licenses.require(target, NOBODY, lambda notice: False)
    licenses.require(target, NOBODY, yes)
    licenses.require(target, NOBODY, never)
    assert shown == ["For evaluation only.\nCommunity License: https://example.org/license"]


def test_another_license_of_the_same_runtime_is_asked_for_anew(target: Target, community: License) -> None:
    licenses.require(target, frozenset({"fake"}), None)
    changed = dataclasses.replace(target, license=dataclasses.replace(community, url="https://example.org/v2"))
    with pytest.raises(RuntimeUnavailable):
        licenses.require(changed, NOBODY, None)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fake": 1}', "\udcff"])
def test_a_corrupt_memory_only_means_being_asked_again(target: Target, home: Path, content: str) -> None:
    home.mkdir()
    (home / "licenses.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RuntimeUnavailable):
        licenses.require(target, NOBODY, None)
    licenses.require(target, frozenset({"fake"}), None)
    licenses.require(target, NOBODY, never)


def test_accepted_in_a_home_that_cannot_be_written(target: Target, home: Path) -> None:
    home.write_text("a file where the folder should be")
    licenses.require(target, frozenset({"fake"}), None)


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.delenv("ACDC_EXPORT_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert home() == Path("/somebody/.cache/acdc-export")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert home() == Path("/cache/acdc-export")
    monkeypatch.setenv("ACDC_EXPORT_HOME", "~/own")
    assert home() == Path("/somebody/own")
