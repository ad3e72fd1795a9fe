"""The code of the documentation runs, and its transforms keep what every transform promises."""

import re
import sys
from pathlib import Path
from types import ModuleType

import contracts
import pytest
import torch
import zoo

from pyro_flows import flows
from pyro_flows.transforms import Autoregressive, Coupling, Elementwise, FlowTransform

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def names():
    """Return what the page defines, as a module, so that its classes can be pickled."""
    recipes = flows.registry._RECIPES
    before, page = dict(recipes), ModuleType("extending_page")
    sys.modules[page.__name__] = page
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), vars(page))
    yield vars(page)
    del sys.modules[page.__name__]
    recipes.clear()
    recipes.update(before)


ROWS = {
    "rank_one": lambda names, d, c: names["RankOne"](d, context_dim=c, hidden_dims=zoo.HIDDEN),
    **{
        f"bend_{kind.__name__}": lambda names, d, c, kind=kind: kind(
            names["Bend"](), d, context_dim=c, hidden_dims=zoo.HIDDEN
        )
        for kind in (Elementwise, Coupling, Autoregressive)
    },
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("d", "c"), [(1, 0), (3, 0), (3, 2)])
def test_transforms_of_the_page_keep_the_contracts(names, row, d, c):
    built: FlowTransform = ROWS[row](names, d, c)
    start = zoo.context_for(built, 20, dtype=torch.float32)
    contracts.starts_at_identity(built, zoo.points(20, d, dtype=torch.float32), start)
    transform = zoo.randomise(built.double())
    case = transform, zoo.points(5, d), zoo.context_for(transform, 5)
    for contract in (
        contracts.round_trip,
        contracts.inverse_ladj_negates,
        contracts.ladj_is_slogdet,
        contracts.gradients_match_differences,
        contracts.every_parameter_learns,
        contracts.batch_is_loop,
        contracts.vmap_is_batch,
        contracts.copies_are_equal,
    ):
        contract(*case)
    huge = 1e30 * zoo.points(5, d, dtype=torch.float32).sign()
    contracts.finite_at(transform.float(), huge, zoo.context_for(transform, dtype=huge.dtype))


def test_recipe_of_the_page_is_registered(names):
    assert flows.find("rank_one")(2).log_prob(torch.zeros(2)).isfinite()
    assert names["log_prob"].shape == (100,)
