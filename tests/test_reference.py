"""Every public name stands in the reference of the documentation."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import pyro_flows

PAGES = Path(__file__).resolve().parents[1] / "docs" / "reference"


def _subpackages(package: ModuleType):
    yield package
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.ismodule(value):
            yield from _subpackages(value) if hasattr(value, "__all__") else [value]


MODULES = {module.__name__: module for module in _subpackages(pyro_flows)}


def _public(module: ModuleType) -> set[str]:
    """Return the names that a module hands on, or defines; those of modules are pages."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"
    ]
    return {name for name in names if not inspect.ismodule(getattr(module, name))}


def _page(name: str) -> str:
    """Return the page that describes a module."""
    directive = "currentmodule" if name == "pyro_flows" else "automodule"
    pages = [page.read_text() for page in PAGES.glob("*.rst")]
    found = [page for page in pages if f".. {directive}:: {name}\n" in page]
    assert len(found) == 1, f"{len(found)} pages describe {name}"
    return found[0]


def _tables(page: str) -> list[str]:
    tables = re.findall(r"autosummary::\n +:nosignatures:\n\n((?: +\w+\n)+)", page)
    return [name for table in tables for name in table.split()]


@pytest.mark.parametrize("name", MODULES)
def test_tables_name_every_public_name_once(name):
    named = _tables(_page(name))
    assert len(named) == len(set(named))
    assert set(named) == _public(MODULES[name])


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"pyro_flows"}))
def test_pages_describe_what_their_tables_name(name):
    """The tables link to the descriptions, which follow ``__all__``."""
    assert f".. automodule:: {name}\n   :members:\n" in _page(name)


def test_names_of_the_top_level_are_described_elsewhere():
    rest = [module for name, module in MODULES.items() if name != "pyro_flows"]
    described = {id(getattr(module, name)) for module in rest for name in _public(module)}
    assert all(id(getattr(pyro_flows, name)) in described for name in _public(pyro_flows)), (
        "the build would not find where to link to"
    )


def test_numerics_lists_names_that_are_there():
    module = importlib.import_module("pyro_flows.numerics")
    page = _page("pyro_flows.numerics")
    named = re.search(r":members: (.*)\n", page)[1].split(", ")
    assert named == _tables(page)
    assert set(named) <= _public(module)
