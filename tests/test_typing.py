"""Type checkers and editors know the options of every function, though no signature repeats them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import acdc_export

ROOT = Path(acdc_export.__file__).parents[1]

RIGHT = """
from pathlib import Path
from acdc_export import Bundle, Pair, check, compare, export, run, train, verify
from acdc_export.config import load_target
from acdc_export.pytest_plugin import AcdcCheck

bundle: Bundle = export("runs/mine", "cpu", gates="speedup >= 1.8", threads=2, out=Path("bundles"))
export(Pair.load("runs/mine"), target=load_target("cpu"), data="digits:test", batch_sizes=[1, 16], threads=[1, 2])
code: int = compare("runs/mine", ["cpu", load_target("openvino")], precisions="int8", budget=60).exit_code
run("digits", targets="all", runs="runs", calibrate=[])
pair: Pair = train("digits", "runs", anew=True)
verify(bundle.path, target="./mybox", threads=1)
passed: bool = check("bundles/new", against="bundles/old", twins=False).passed

def test_speed(acdc_check: AcdcCheck) -> None:
    assert acdc_check("bundles/new", against="bundles/old", gates=["size <= 12MB"]).passed
"""

WRONG = [
    ("export('runs/mine', precison='int8')", 'Unexpected keyword argument "precison" for "export"'),
    (
        "export('runs/mine', require_deployable='yes')",
        'Argument "require_deployable" to "export" has incompatible type',
    ),
    ("export('runs/mine', batch_sizes=['1'])", "has incompatible type"),
    ("export()", "Too few arguments"),
    ("compare('runs/mine', budget='60')", 'Argument "budget" to "compare" has incompatible type'),
    ("check('bundles/new', agianst='bundles/old')", 'Unexpected keyword argument "agianst" for "check"'),
    ("run('digits', pair='runs/mine')", 'Unexpected keyword argument "pair" for "run"'),
    ("train('digits', dry_run=True)", 'Unexpected keyword argument "dry_run" for "train"'),
    ("verify('bundles/new', threads=[1])", 'Argument "threads" to "verify" has incompatible type'),
    ("acdc_check('bundles/new', agianst='bundles/old')", 'Unexpected keyword argument "agianst"'),
]


def test_mypy_takes_right_calls_and_refuses_wrong_ones(tmp_path: Path) -> None:
    lines = RIGHT.splitlines()
    source = [*lines, "def wrong(acdc_check: AcdcCheck) -> None:", *(f"    {call}" for call, _ in WRONG)]
    file = tmp_path / "calls.py"
    file.write_text("\n".join(source) + "\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--hide-error-context",
        str(file),
    ]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = {}
    for line in checked.stdout.splitlines():
        where, _, message = line.partition(": error: ")
        if message:
            errors[int(where.rpartition(":")[2])] = message
    assert [number for number in errors if number <= len(lines)] == [], checked.stdout
    for number, (call, said) in enumerate(WRONG, len(lines) + 2):
        assert said in errors.get(number, "no error"), call
