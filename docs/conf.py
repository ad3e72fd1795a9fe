"""Settings of the documentation; `make docs` builds it."""

import importlib
import inspect
import re
import shutil
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import pyro_flows

project = "pyro_flows"
author = "The pyro_flows authors"
copyright = f"2026, {author}"
version = release = version_of("pyro-flows")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
nitpicky = True
# Of other libraries there is no index to link to without a network.
nitpick_ignore_regex = [("py:.*", r"(?!pyro_flows\.).*")]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks bring their outputs

autosummary_generate = False  # all of a subpackage stands on one page
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the arguments' descriptions say what they are
autodoc_default_options = {"show-inheritance": True}
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Reference"]

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"{project} {version}"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["site.css"]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

SUBPACKAGES = (
    "infer",
    "diagnostics",
    "diagnostics.plots",
    "flows",
    "transforms",
    "distributions",
    "density",
    "density.toy",
    "nn",
    "errors",
    "numerics",
)


def _documented_at() -> dict[int, str]:
    """Map public objects to the one place where the reference describes them."""
    places: dict[int, str] = {}
    for part in SUBPACKAGES:
        module = importlib.import_module(f"pyro_flows.{part}")
        for name, value in vars(module).items():
            public = name in getattr(module, "__all__", vars(module)) and name[0] != "_"
            if public and _is_ours(value):
                places.setdefault(id(value), f"{module.__name__}.{name}")
    return places


def _is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("pyro_flows")


PLACES = _documented_at()


def _named(dotted: str) -> Any:
    """Return what a dotted name stands for; none where nothing does."""
    value: Any = pyro_flows
    for name in dotted.split(".")[1:]:
        value = getattr(value, name, None)
    return value


def link_other_names(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Link ``pyro_flows.fit`` to where ``pyro_flows.infer.fit`` is described."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("pyro_flows."):
        return None
    owner, _, member = target.rpartition(".")
    place = PLACES.get(id(_named(target)))
    if place is None and id(_named(owner)) in PLACES:
        place = f"{PLACES[id(_named(owner))]}.{member}"
    if place in (None, target):
        return None
    return env.domains.python_domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], place, node, content
    )


def show_public_bases(app: Sphinx, name: str, kind: type, options: Any, bases: list[type]) -> None:
    """Name the nearest base that a reader can look up."""
    known = [
        next(each for each in inspect.getmro(base) if not _is_ours(each) or id(each) in PLACES)
        for base in bases
        if inspect.isclass(base)
    ]
    bases[:] = dict.fromkeys(known)


def skip_fields(app: Sphinx, what: str, name: str, value: Any, *_: Any) -> bool | None:
    """Leave out the fields of named tuples, which the class's own text describes."""
    doc = getattr(value, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") else None


# The converter sets functions close to what follows without a bracket, and some too far from one.
_FUNCTION = re.compile(r"\\(log|exp|tanh|sin|cos)(?=\s+\S|\\)(?!\s*(?:[(_^]|\\[bB]ig|\\left))")
_WIDE = re.compile(r"<mo[^>]*>(?=(?:&#x0007C;|max|min)</mo>)")


def _drawn(text: str, display: str) -> str:
    drawn = convert(_FUNCTION.sub(r"\\\1\\,", text), display=display)
    return _WIDE.sub('<mo lspace="0" rspace="0" stretchy="false">', drawn)


def inline_formula(writer: Any, node: nodes.Element) -> None:
    """Write a formula as browsers draw it."""
    writer.body.append(_drawn(node.astext(), "inline"))
    raise nodes.SkipNode


def block_formula(writer: Any, node: nodes.Element) -> None:
    """Write the parts of a formula, which wrap where the page is narrow."""
    text = node.astext()
    parts = [text] if r"\begin" in text else text.split(r"\qquad")
    drawn = "".join(_drawn(part, "block") for part in parts)
    writer.body.append(f'<div class="formula">{drawn}</div>')
    raise nodes.SkipNode


def bring_notebooks(app: Sphinx, config: Any) -> None:
    """Copy the tutorials here, as Sphinx reads below its own folder alone."""
    here = Path(app.confdir)
    copies = here / "tutorials"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    for notebook in (here.parent / "tutorials").glob("*.ipynb"):
        shutil.copy2(notebook, copies)


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("config-inited", bring_notebooks)
    app.connect("missing-reference", link_other_names)
    app.connect("autodoc-process-bases", show_public_bases)
    app.connect("autodoc-skip-member", skip_fields)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(inline_formula, None),
        block_renderers=(block_formula, None),
    )
