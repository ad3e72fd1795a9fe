"""Where things come from: nothing is fetched while the package runs, and versions are pinned."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [p for folder in ("pyro_flows", "tutorials") for p in (ROOT / folder).rglob("*.py")]
FETCHERS = {"ftplib", "http", "huggingface_hub", "requests", "socket", "urllib", "urllib3"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_fetched(path):
    """FAULTS 85."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not FETCHERS & {module.split(".")[0] for module in modules}
        if isinstance(node, ast.keyword):
            assert node.arg not in ("download", "trust_remote_code")


def test_versions_are_pinned_for_ci():
    """FAULTS 86."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in pins}
    project = (ROOT / "pyproject.toml").read_text()
    extras = [
        re.search(rf"^{extra} = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1]
        for extra in ("dev", "docs")
    ]
    runtime = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1]
    wanted = set(re.findall(r'"([\w-]+)[>"=]', "".join(extras) + runtime)) - {"pyro-flows"}
    assert wanted >= {"torch", "pytest", "ruff", "sphinx"}
    assert wanted <= pinned
    assert "-c constraints.txt" in (ROOT / "Makefile").read_text()
