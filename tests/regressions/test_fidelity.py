"""What others met in containers and with other settings of pip: the symptom stands at the top of each test."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acdc_export import machine
from acdc_export.data import images
from acdc_export.engines import environment
from acdc_export.engines.home import home
from acdc_export.errors import UsageError
from acdc_export.present import charts


def command(*arguments: str, launcher: str = "", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command, after `launcher` has set up the interpreter that it runs in."""
    code = f"import sys\n{launcher}\nfrom acdc_export.__main__ import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )


# As a user without an entry in passwd sees it.
NOBODY = """
import os, pwd
def missing(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = missing
for name in ("HOME", "XDG_CACHE_HOME", "ACDC_EXPORT_HOME"): os.environ.pop(name, None)
"""


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", missing)
    for name in ("HOME", "XDG_CACHE_HOME", "ACDC_EXPORT_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_a_home_is_told_what_to_set(nobody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers: `RuntimeError: Could not determine home directory.` for a user without HOME and a passwd entry."""
    with pytest.raises(UsageError, match="HOME is not set") as caught:
        home()
    assert "ACDC_EXPORT_HOME" in caught.value.remedy
    monkeypatch.setenv("ACDC_EXPORT_HOME", "~/here")
    with pytest.raises(UsageError, match="HOME is not set"):
        home()
    monkeypatch.setenv("ACDC_EXPORT_HOME", "/somewhere")
    assert home() == Path("/somewhere")


@pytest.mark.parametrize(("place", "said"), [("~/data", "HOME is not set"), ("~no-such-user/data", "no such user")])
def test_data_in_a_home_that_is_not_known(nobody: None, place: str, said: str) -> None:
    """The same RuntimeError for an image folder below `~`."""
    with pytest.raises(UsageError, match=said):
        images.parse(f"imagefolder:{place}")


def test_charts_need_no_home(nobody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib: its folder of settings is in the home, which isn't there."""
    monkeypatch.setenv("MPLCONFIGDIR", "")  # restored at the end, whatever is set on the way
    monkeypatch.delenv("MPLCONFIGDIR")
    charts.available()
    assert Path(os.environ["MPLCONFIGDIR"]).is_dir()


def test_targets_are_listed_without_a_home() -> None:
    """`targets list` ended in a traceback where there is no home."""
    done = command("targets", "list", "--json", launcher=NOBODY)
    assert done.returncode == 0, done.stderr.decode()
    rows = {row["name"]: row["detail"] for row in json.loads(done.stdout)}
    rows.pop("native")  # it runs in our own interpreter: there is nothing to install into a home
    assert rows
    assert all("ACDC_EXPORT_HOME" in detail for detail in rows.values())


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_output_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    """UnicodeEncodeError: a terminal in latin-1, or a log in ASCII, and a name or table with other characters."""
    names = f"{tmp_path}/größe-→-漢字"
    done = command("inspect", names, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"\\u6f22" in done.stderr or "漢字".encode() in done.stderr  # click writes UTF-8 where ASCII is asked for
    done = command("inspect", names, "--json", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert "漢字" in json.loads(done.stdout.decode(encoding))["error"]["message"]
    launcher = """
from acdc_export import __main__
from acdc_export.cli.output import Output
__main__._print_whatever_the_encoding()
Output().text("\u2265 90 % \u6f22")
"""
    done = command("pipelines", "list", launcher=launcher, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"\\u2265 90 % \\u6f22")
    assert b"digits" in done.stdout


SETTINGS = """
    CONSTRAINT DRY_RUN NO_DEPS USER TARGET PREFIX ROOT PRE REQUIREMENT PYTHON REPORT REQUIRE_HASHES ONLY_BINARY
    NO_BINARY UPLOADED_PRIOR_TO SOMETHING_NEW
"""


@pytest.mark.parametrize("name", SETTINGS.split())
def test_only_where_packages_come_from_reaches_pip(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Vendors' images set PIP_CONSTRAINT: other versions than those pinned were installed, and nothing said so."""
    monkeypatch.setenv(f"PIP_{name}", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "https://here/simple")
    assert f"PIP_{name}" not in environment._variables()
    assert environment._variables()["PIP_INDEX_URL"] == "https://here/simple"


def test_of_pips_files_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constraint, or `user = true`, in pip.conf."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_PROXY", "http://mine")
    listed = [
        "global.index-url='https://a/simple'",
        "global.constraint='/c.txt'",
        "global.proxy='http://theirs'",
        "install.index-url='https://b/simple?q=1'",
        "install.user='true'",
        "install.extra_index_url='\\nhttps://c\\nhttps://d'",
        "list.cert='/x'",
        ":env:.no-index='1'",
        "WARNING: something",
    ]
    assert environment._from_files(listed) == {
        "PIP_INDEX_URL": "https://b/simple?q=1",
        "PIP_EXTRA_INDEX_URL": "\nhttps://c\nhttps://d",
    }


def test_a_quota_is_not_measured_against(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers: two threads on a quota of one CPU, whose times the kernel's throttling decides."""
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1.0)
    assert len(machine.describe().cpus) == 1
    if len(machine.physical_cpus()) > 1:
        assert "quota" in machine.quota_notes(1)[0]


def test_a_closed_folder_on_path_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Containers: PATH names folders of root, where looking for an interpreter ended in `Permission denied`."""

    stat = Path.stat

    def closed(path: Path, **options: Any) -> os.stat_result:
        if path.parent == Path("/closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    (tmp_path / "python3.99").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"/closed:{tmp_path}")
    monkeypatch.setattr(Path, "stat", closed)
    assert list(environment._on_path("python3.99")) == [tmp_path / "python3.99"]
