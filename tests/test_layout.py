"""The floors of the package, read from its sources; and what importing it must not do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyro_flows"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    "errors": 0,
    "_checks": 0,
    "numerics": 0,
    "roots": 0,
    "nn": 1,
    "transforms": 2,
    "distributions": 3,
    "flows": 3,
    "checkpoint": 3,
    "infer": 4,
    "density": 4,
    "diagnostics": 5,
}
# Beside torch and the standard library, by floor; 0 and 1 have nothing.
PYRO_FROM = 2
INFERENCE = ("pyro.infer", "pyro.poutine", "pyro.params", "pyro.optim", "pyro.get_param_store")
HEAVY = ("arviz", "matplotlib")
LONGEST_FILE = 400


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _part(module: str) -> str:
    """Return the part of the package that a dotted name is in; none for the package itself."""
    return module.split(".")[1] if "." in module else ""


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _imports(node: ast.AST, *, inside_functions: bool) -> Iterator[tuple[str, str]]:
    """Yield every import below a node: the module, and the dotted name that is taken from it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"a relative import: {ast.unparse(child)}"
            yield from ((child.module, f"{child.module}.{alias.name}") for alias in child.names)
        elif _is_type_checking(child):
            continue
        elif inside_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _imports(child, inside_functions=inside_functions)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _below(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


EVERY = pytest.mark.parametrize("source", SOURCES, ids=_name)
LOWEST = pytest.mark.parametrize(
    "source",
    [path for path in SOURCES if FLOORS.get(_part(_name(path)), 9) < PYRO_FROM],
    ids=_name,
)
OUTSIDE_INFERENCE = pytest.mark.parametrize(
    "source",
    [path for path in SOURCES if _part(_name(path)) not in ("infer", "diagnostics")],
    ids=_name,
)


def test_every_part_has_a_floor():
    parts = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()}
    found = {part for part in parts if part.isidentifier() and not part.startswith("__")}
    assert found - {"py"} <= set(FLOORS)


@EVERY
def test_lower_floors_do_not_import_higher_ones(source):
    part = _part(_name(source))
    for _, name in _imports(_tree(source), inside_functions=True):
        if part and _below(name, ("pyro_flows",)):
            other = _part(name)
            assert other, f"{_name(source)} imports from the package itself"
            # `from pyro_flows import x` may also take a name that a part defines.
            assert FLOORS[other] <= FLOORS[part], f"{_name(source)} imports {name}"


@LOWEST
def test_lowest_floors_need_torch_alone(source):
    allowed = {"torch", "pyro_flows", *sys.stdlib_module_names}
    for module, _ in _imports(_tree(source), inside_functions=True):
        assert module.split(".")[0] in allowed, f"{_name(source)} imports {module}"


@OUTSIDE_INFERENCE
def test_only_inference_touches_pyros_inference(source):
    tree = _tree(source)
    for module, name in _imports(tree, inside_functions=True):
        assert not _below(module, INFERENCE), f"{_name(source)} imports {module}"
        assert not _below(name, INFERENCE), f"{_name(source)} imports {name}"
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [name for name in used if _below(name, INFERENCE)]


@EVERY
def test_heavy_libraries_are_imported_where_they_are_used(source):
    for module, _ in _imports(_tree(source), inside_functions=False):
        assert not _below(module, HEAVY), f"{_name(source)} imports {module} at its top"


@OUTSIDE_INFERENCE
def test_heavy_libraries_stay_with_diagnostics(source):
    for module, _ in _imports(_tree(source), inside_functions=True):
        assert not _below(module, HEAVY), f"{_name(source)} imports {module}"


def test_top_level_holds_no_logic():
    body = _tree(PACKAGE / "__init__.py").body
    assert isinstance(body[0], ast.Expr), "no docstring"
    for node in body[1:]:
        exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert exports or isinstance(node, ast.ImportFrom), ast.unparse(node)


@EVERY
def test_files_stay_short(source):
    assert len(source.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda p: p.stem)
def test_test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def test_the_reader_of_imports_would_find_them():
    """The checks above can fail."""
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import arviz\n"
        "def f():\n    import matplotlib.pyplot\n"
        "class A:\n    from pyro.infer import SVI\n"
    )
    top = [name for _, name in _imports(tree, inside_functions=False)]
    assert top == ["typing.TYPE_CHECKING", "pyro.infer.SVI"]
    assert "matplotlib.pyplot" in [name for _, name in _imports(tree, inside_functions=True)]
    assert _below("pyro.infer.SVI", INFERENCE)
    assert not _below("pyro.inference", INFERENCE)


# Compared before and after: settings of the process, attributes of torch's and Pyro's classes.
SNAPSHOT = """
import random, sys, warnings
import numpy, pyro, pyro.distributions, pyro.infer.autoguide, torch

def classes():
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] in ("torch", "pyro") and not name.startswith("torch._"):
            for value in list(vars(module).values()):
                if issubclass(type(value), type) and value.__module__ == name:
                    yield value

def snapshot(types):
    attributes = {kind: {key: id(value) for key, value in vars(kind).items()} for kind in types}
    settings = {
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "torch's generator": torch.random.get_rng_state().tolist(),
        "numpy's generator": str(numpy.random.get_state()),
        "python's generator": random.getstate(),
        "warning filters": list(warnings.filters),
        "Pyro's settings": pyro.settings.get(),
        "param store": list(pyro.get_param_store()),
        "torch's validation": torch.distributions.Distribution._validate_args,
    }
    return attributes, settings

types = list(classes())
before = snapshot(types)
import pyro_flows
after = snapshot(types)
assert len(types) > 500, len(types)
for old, new in zip(before, after):
    for key in old:
        if old[key] != new[key]:
            sys.exit(f"importing the package changed {key}: {old[key]} -> {new[key]}")
heavy = {"arviz", "matplotlib"} & set(sys.modules)
if heavy:
    sys.exit(f"importing the package imports {heavy}")
"""


def _python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_import_changes_no_global():
    """FAULTS 44: no setting, no generator, no class of torch or Pyro."""
    done = _python(SNAPSHOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_import_check_would_find_a_change():
    """FAULTS 44: the check above can fail."""
    for change in (
        "torch.randn(1)",
        "torch.nn.Linear.mine = 1",
        "warnings.simplefilter('ignore')",
    ):
        done = _python(SNAPSHOT.replace("import pyro_flows\n", f"{change}\n"))
        assert "importing the package changed" in done.stderr, change
