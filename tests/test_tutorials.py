"""The tutorials run, in the short runs that their parameters name, and hold their outputs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
LARGEST = 1_000_000  # bytes
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tutorials" / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _code(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@EVERY
def test_tutorial_runs(path):
    before = path.read_bytes()
    ended = _run("--quick", path)
    assert ended.returncode == 0, ended.stderr
    assert path.read_bytes() == before


@EVERY
def test_tutorial_holds_its_outputs(path):
    assert path.stat().st_size < LARGEST
    cells = _code(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert "error" not in kinds
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell["outputs"])


@EVERY
def test_tutorial_fetches_nothing(path):
    """FAULTS 85."""
    code = "\n".join("".join(cell["source"]) for cell in _code(path))
    assert not re.search(r"\b(requests|urllib|http|download|fetch_\w+|trust_remote_code)\b", code)


def test_tutorials_are_numbered_and_on_the_site():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{n:02d}" for n in range(1, 11)]
    page = (ROOT / "docs" / "tutorials.md").read_text()
    assert all(f"\ntutorials/{path.stem}\n" in page for path in NOTEBOOKS)


def test_a_failing_tutorial_is_told(tmp_path):
    """The check above can fail, and names the error."""
    cell = {"cell_type": "code", "execution_count": None, "outputs": [], "id": "a"}
    budget = {"source": "steps = 9", "metadata": {"tags": ["parameters"], "quick": {"steps": 2}}}
    wrong = {"source": "assert steps == 9, steps", "metadata": {}, "id": "b"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}}
    path = tmp_path / "wrong.ipynb"
    path.write_text(json.dumps({**notebook, "cells": [{**cell, **budget}, {**cell, **wrong}]}))
    ended = _run("--quick", path)
    assert ended.returncode == 1
    assert "AssertionError: 2" in ended.stderr
