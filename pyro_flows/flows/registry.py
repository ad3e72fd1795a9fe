"""Recipes by name."""

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.flows._options import Recipe
from pyro_flows.flows.autoregressive import iaf, maf
from pyro_flows.flows.coupling import nice, realnvp
from pyro_flows.flows.monotone import bnaf, naf, nsf, sospf
from pyro_flows.flows.residual import planar, radial, sylvester

_RECIPES: dict[str, Recipe] = {
    "bnaf": bnaf,
    "iaf": iaf,
    "maf": maf,
    "naf": naf,
    "nice": nice,
    "nsf": nsf,
    "planar": planar,
    "radial": radial,
    "realnvp": realnvp,
    "sospf": sospf,
    "sylvester": sylvester,
}
_BUILT_IN = frozenset(_RECIPES)


def register(name: str, recipe: Recipe) -> None:
    """Make a recipe of one's own available by name, as in ``AutoFlow(model, flow=name)``.

    Args:
        name: The name; registering it again replaces the recipe, a built-in name is refused.
        recipe: A function from the number of coordinates to a :class:`~pyro_flows.Flow`.

    Raises:
        DomainError: The name is not a non-empty string or names a built-in recipe, or the recipe
            cannot be called.

    Example:
        >>> from pyro_flows import flows
        >>> flows.register("deep_iaf", lambda input_dim: flows.iaf(input_dim, num_transforms=8))
        >>> flows.find("deep_iaf")(3).sample().shape
        torch.Size([3])
    """
    if not isinstance(name, str) or not name or name in _BUILT_IN:
        raise _checks.refusal(
            DomainError,
            "register",
            expected="name to be a non-empty string that is not a built-in recipe's",
            got=f"{name!r}",
            advice="Register it under another name.",
        )
    if not callable(recipe):
        raise _checks.refusal(
            DomainError,
            "register",
            expected="recipe to be a function input_dim -> Flow",
            got=_checks.describe(recipe),
        )
    _RECIPES[name] = recipe


def find(flow: str | Recipe) -> Recipe:
    """Return the recipe of that name; a recipe is returned as it is.

    Args:
        flow: A registered name, or a function from the number of coordinates to a flow.

    Raises:
        DomainError: The name is not known, or ``flow`` can be neither.

    Example:
        >>> from pyro_flows import flows
        >>> flows.find("maf") is flows.maf
        True
    """
    if isinstance(flow, str):
        return _RECIPES[_checks.check_choice("flows.find", "flow", flow, tuple(_RECIPES))]
    if not callable(flow):
        raise _checks.refusal(
            DomainError,
            "flows.find",
            expected="flow to be a name or a function input_dim -> Flow",
            got=_checks.describe(flow),
        )
    return flow
