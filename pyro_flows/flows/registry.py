"""Recipes by name."""

import inspect
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.flows._options import Recipe
from pyro_flows.flows.autoregressive import iaf, maf
from pyro_flows.flows.continuous import cnf
from pyro_flows.flows.coupling import nice, realnvp
from pyro_flows.flows.monotone import bnaf, elementwise, naf, nsf, sospf
from pyro_flows.flows.residual import planar, radial, sylvester

_RECIPES: dict[str, Recipe] = {
    "bnaf": bnaf,
    "cnf": cnf,
    "elementwise": elementwise,
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
# In a guide, the box of a spline is in units of the start, which is narrow where a posterior bends
# or has arms; beyond the box is out of reach.
_IN_GUIDES: dict[str, dict[str, Any]] = {"nsf": {"bound": 15.0, "count_bins": 16}}
# More than any size of a network; below what a list of as many entries could not hold.
_LARGEST, _LONGEST = 10_000_000, 1000


class NamedRecipe(NamedTuple):
    """A registered recipe and its options, as a file can hold them.

    Attributes:
        name: The name.
        options: Keyword arguments: numbers, texts, booleans, none, and lists of these.
    """

    name: str
    options: dict[str, Any]


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


def find_for_guide(flow: str | Recipe) -> Recipe:
    """Return the recipe as guides take it: splines by name have a box three times as wide.

    Args:
        flow: A registered name, or a function from the number of coordinates to a flow, which is
            returned as it is.

    Raises:
        DomainError: The name is not known, or ``flow`` can be neither.

    Example:
        >>> find_for_guide("nsf").keywords
        {'bound': 15.0, 'count_bins': 16}
    """
    recipe = find(flow)
    options = _IN_GUIDES.get(flow) if isinstance(flow, str) else None
    return partial(recipe, **options) if options else recipe


def named(recipe: Recipe) -> NamedRecipe | None:
    """Return the name and all options of a registered recipe; none for any other function.

    Args:
        recipe: A recipe, or a ``functools.partial`` of one with keyword arguments.

    Example:
        >>> from functools import partial
        >>> from pyro_flows import flows
        >>> named(partial(flows.planar, num_transforms=4))
        NamedRecipe(name='planar', options={'num_transforms': 4, 'hidden_dims': None,
        'context_dim': 0})
    """
    function, given = recipe, {}
    if isinstance(recipe, partial) and not recipe.args and recipe not in _RECIPES.values():
        function, given = recipe.func, recipe.keywords
    name = next((name for name, known in _RECIPES.items() if known is function), None)
    if name is None or not all(map(_is_plain, given.values())):
        return None
    # Defaults as well, which may be others in a later release.
    defaults = {
        option: parameter.default
        for option, parameter in _options_of(function).items()
        if parameter.default is not parameter.empty and _is_plain(parameter.default)
    }
    return NamedRecipe(name, {key: _listed(value) for key, value in {**defaults, **given}.items()})


def from_name(name: str, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe of that name with options, once they are found to be options of its.

    Nothing is built or imported: the name is looked up among the registered ones.

    Args:
        name: A registered name.
        options: Keyword arguments of the recipe.

    Raises:
        DomainError: The name is not known, or an option is not the recipe's, or of a kind or size
            that no recipe takes.

    Example:
        >>> from_name("maf", {"num_transforms": 2})(4).event_shape
        torch.Size([4])
    """
    who = "flows.from_name"
    recipe = _RECIPES[_checks.check_choice(who, "name", name, tuple(_RECIPES))]
    known = _options_of(recipe)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        known = dict.fromkeys(options, inspect.Parameter("_", inspect.Parameter.KEYWORD_ONLY))
    for option, value in options.items():
        if option not in known or not _is_plain(value):
            raise _checks.refusal(
                DomainError,
                who,
                expected=f"options of {name!r} among {sorted(known)}, with numbers up to "
                f"{_LARGEST}, texts, booleans or lists of these for values",
                got=f"{option!r}: {_checks.shortened(value)}",
                advice="Pass the recipe itself instead of its name.",
            )
    return partial(recipe, **options)


def _options_of(recipe: Recipe) -> dict[str, inspect.Parameter]:
    """Return the parameters after the first, by which recipes take the number of coordinates."""
    try:
        parameters = list(inspect.signature(recipe).parameters.values())
    except ValueError:  # a callable written in another language
        return {}
    return {each.name: each for each in parameters[1:]}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(entry, (list, tuple)) for entry in value)
        return len(value) <= _LONGEST and not nested and all(map(_is_plain, value))
    if isinstance(value, int):
        return abs(value) <= _LARGEST
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
