"""The code of the documentation's pages runs, and prints what they show."""

import doctest
import functools
import importlib.util
import logging
import re
from pathlib import Path

import pytest

import pyro_flows as pf
from pyro_flows import flows

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(page for page in DOCS.glob("*.md") if page.stem != "extending")  # see test_docs.py
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
CHECKER = doctest.OutputChecker()
LANGUAGES = {"python", "pycon", "text", "shell"}
# Other libraries, whose side of a comparison runs where they are installed.
PEERS = ("zuko", "normflows", "jax", "numpyro")


def _blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def _is_of_missing_peer(code: str) -> bool:
    return any(
        re.search(rf"^import {peer}\b", code, re.MULTILINE) and not importlib.util.find_spec(peer)
        for peer in PEERS
    )


def _session(code: str, names: dict, page: Path) -> None:
    """Run what has prompts, and compare what it prints."""
    test = doctest.DocTestParser().get_doctest(code, names, page.stem, str(page), 0)
    complaints: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=complaints.append, clear_globs=False)
    assert not complaints, "".join(complaints)
    names.update(test.globs)


@pytest.fixture
def _recipes_put_back():
    before = dict(flows.registry._RECIPES)
    yield
    flows.registry._RECIPES.clear()
    flows.registry._RECIPES.update(before)


@pytest.mark.usefixtures("_recipes_put_back")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_the_page_runs(page, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)  # where files go
    # Runs are short here; test_readme.py has one to its end.
    monkeypatch.setattr(pf, "fit", functools.partial(pf.fit, steps=20, progress=False))
    caplog.set_level(logging.INFO, "pyro_flows")
    names: dict = {"__name__": page.stem}
    for language, code in _blocks(page):
        if language == "pycon":
            _session(code, names, page)
        elif language == "text":
            told = [record.getMessage() + "\n" for record in caplog.records]
            assert any(CHECKER.check_output(code, message, FLAGS) for message in told), code
        elif language == "python":
            compiled = compile(code, str(page), "exec")
            if not _is_of_missing_peer(code):
                exec(compiled, names)


def test_pages_with_code_are_found():
    """The reader of pages above can fail."""
    assert {language for page in PAGES for language, _ in _blocks(page)} <= LANGUAGES
    assert {"coming-from", "faq", "flows", "index"} <= {page.stem for page in PAGES}
    assert [language for language, _ in _blocks(DOCS / "faq.md")].count("text") >= 4
    with pytest.raises(AssertionError, match="Expected"):
        _session(">>> 1 + 1\n3\n", {}, DOCS / "faq.md")


def test_table_of_families_is_right():
    page = (DOCS / "flows.md").read_text()
    rows = re.findall(r"^\| \{func\}`~pyro_flows\.flows\.(\w+)` .*\| (\w+) \|[^|]*\|$", page, re.M)
    helpers = {"find", "register", "Recipe"}
    assert {name for name, _ in rows} == set(flows.__all__) - helpers
    for name, inverse in rows:
        size = (1, 4, 4) if name in ("glow", "realnvp_image", "nice_image") else 4
        assert getattr(flows, name)(size).transform.inverse_kind == inverse, name
