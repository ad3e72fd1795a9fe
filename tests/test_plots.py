"""What all pictures share: axes, global state, dtypes, and what they refuse."""

import functools
import os
import random
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from pyro_flows.diagnostics import plots
from pyro_flows.errors import DomainError, NonFiniteError, ShapeError
from pyro_flows.flows import realnvp
from pyro_flows.infer import AutoFlow, PosteriorDraws, fit

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
POINTS, RANKS, SHARES = RNG.normal(size=(60, 2)), RNG.integers(0, 100, 60), RNG.uniform(size=60)
PIXELS = RNG.uniform(size=(4, 5, 5))
NAN = float("nan")


@pytest.fixture(autouse=True)
def _no_window():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@functools.cache
def result():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    return fit(model, AutoFlow(model), steps=20, seed=0, progress=False)


# How to call each; of several axes, as many as it takes.
ONE = {
    "plot_loss": lambda **options: plots.plot_loss(result(), **options),
    "plot_density": lambda **options: plots.plot_density(realnvp(2), resolution=9, **options),
    "plot_grid": lambda **options: plots.plot_grid(realnvp(2), lines=3, **options),
    "plot_k_hat": lambda **options: plots.plot_k_hat(POINTS[:, 0], **options),
    "plot_ranks": lambda **options: plots.plot_ranks(RANKS, num_draws=99, **options),
    "plot_vsbc": lambda **options: plots.plot_vsbc(SHARES, **options),
    "plot_images": lambda **options: plots.plot_images(PIXELS, **options),
    "plot_interpolations": lambda **options: plots.plot_interpolations(PIXELS[None], **options),
}
SEVERAL = {
    "plot_pairs": (lambda **options: plots.plot_pairs({"x": POINTS}, **options), "axes", (2, 2)),
    "plot_directions": (
        lambda **options: plots.plot_directions(realnvp(2), POINTS, **options),
        "axes",
        (2, 2),
    ),
    "plot_ranks": (
        lambda **options: plots.plot_ranks({"a": RANKS, "b": RANKS}, num_draws=99, **options),
        "ax",
        (2,),
    ),
    "plot_vsbc": (lambda **options: plots.plot_vsbc({"a": SHARES}, **options), "ax", (1,)),
}


def test_every_picture_is_in_the_tables():
    assert set(ONE) | set(SEVERAL) == set(plots.__all__)


@pytest.mark.parametrize("name", ONE)
def test_axes_that_are_given_are_used_and_returned(name):
    figure = Figure()
    ax = figure.subplots()
    assert ONE[name](ax=ax) is ax
    assert ax.has_data() or ax.patches
    assert not plt.get_fignums()
    figure.savefig(os.devnull, format="png")


@pytest.mark.parametrize("name", ONE)
def test_axes_of_a_new_figure(name):
    """A figure that pyplot knows, so that a notebook shows it."""
    ax = ONE[name]()
    assert plt.get_fignums() == [ax.figure.number]
    assert isinstance(ax, plt.Axes)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_axes(name):
    draw, option, shape = SEVERAL[name]
    axes = Figure().subplots(*shape, squeeze=False)
    found = draw(**{option: axes})
    assert list(found.flat) == list(axes.flat)
    assert not plt.get_fignums()
    assert draw().size == axes.size
    with pytest.raises(ShapeError, match=rf"^{name}: expected {axes.size} axes.*got 12\."):
        draw(**{option: Figure().subplots(3, 4)})
    with pytest.raises(DomainError, match=rf"^{name}: expected ax to be matplotlib axes; got str"):
        draw(**{option: ["here"] * axes.size})


@pytest.mark.parametrize("name", ONE)
def test_what_is_no_axes_is_refused(name):
    with pytest.raises(DomainError, match=rf"^{name}: expected ax to be matplotlib axes; got Fig"):
        ONE[name](ax=Figure())


@pytest.mark.parametrize("name", plots.__all__)
def test_without_matplotlib_the_extra_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(DomainError, match=rf"^{name}: .*pip install 'pyro-flows\[plots\]'"):
        (ONE.get(name) or SEVERAL[name][0])()


def test_global_state_is_left_alone():
    def state():
        generators = (
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),  # noqa: NPY002
            random.getstate(),
        )
        return dict(mpl.rcParams), mpl.get_backend(), torch.is_grad_enabled(), generators

    flow = realnvp(2)
    before = state()
    plots.plot_density(flow, resolution=9)
    plots.plot_directions(flow, POINTS)
    plots.plot_pairs({"x": POINTS})
    plots.plot_k_hat(POINTS[:, 0])
    assert state() == before
    assert all(parameter.grad is None for parameter in flow.parameters())


HEADLESS = """
import sys
import torch
from pyro_flows.diagnostics import plots
assert "matplotlib" not in sys.modules
ax = plots.plot_images(torch.rand(4, 5, 5))
ax.figure.savefig(sys.argv[1])
"""


def test_without_a_display(tmp_path):
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    picture = tmp_path / "images.png"
    command = [sys.executable, "-W", "error", "-c", HEADLESS, str(picture)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert picture.stat().st_size > 1000


FORMS = {
    "float16": lambda values: torch.as_tensor(values).half(),
    "bfloat16": lambda values: torch.as_tensor(values).bfloat16(),
    "float32": lambda values: torch.as_tensor(values).float(),
    "gradient": lambda values: torch.as_tensor(values).requires_grad_(),
    "numpy float16": lambda values: values.astype(np.float16),
    "nested list": lambda values: values.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_numbers(form):
    given, coarse = FORMS[form], 2e-2 if "16" in form else 1e-5
    drawn = plots.plot_images(given(PIXELS)).images[0].get_array()
    np.testing.assert_allclose(drawn, plots.plot_images(PIXELS).images[0].get_array(), atol=coarse)
    plots.plot_vsbc(given(SHARES))
    plots.plot_k_hat(given(POINTS[:, 0]))
    plots.plot_ranks(given(RANKS.astype(float)), num_draws=99)
    moved = plots.plot_directions(realnvp(2), given(POINTS))[0, 0].collections[0].get_offsets()
    np.testing.assert_allclose(moved, POINTS, atol=coarse)
    points = plots.plot_pairs({"x": given(POINTS)})[1, 0].lines[0]
    np.testing.assert_allclose(points.get_xydata(), POINTS, atol=coarse)


FLOW = realnvp(2)
BAD = [
    ("plot_loss", (3.0,), {}, DomainError, "the FitResult"),
    ("plot_loss", (result,), {"exact": NAN}, DomainError, "exact"),
    ("plot_loss", (result,), {"exact": "none"}, DomainError, "exact"),
    ("plot_density", (realnvp(3),), {}, ShapeError, "a Flow in two dimensions; got 3"),
    ("plot_density", (dist.Normal(0, 1),), {}, DomainError, "a Flow in two dimensions; got Norm"),
    ("plot_density", (realnvp(2, context_dim=1),), {}, ShapeError, r"a context of shape \(\*, 1"),
    ("plot_density", (FLOW,), {"context": [1.0]}, ShapeError, "no context"),
    ("plot_density", (FLOW,), {"bounds": (0, 1)}, ShapeError, "bounds as"),
    ("plot_density", (FLOW,), {"bounds": ((1, 0), (0, 1))}, DomainError, "low < high"),
    ("plot_density", (FLOW,), {"bounds": ((0, NAN), (0, 1))}, NonFiniteError, "bounds"),
    ("plot_density", (FLOW,), {"resolution": 1}, DomainError, "resolution"),
    ("plot_density", (FLOW.expand((3,)),), {}, ShapeError, "one context; got"),
    ("plot_grid", (realnvp(1),), {}, ShapeError, "a Flow in two dimensions"),
    ("plot_grid", (FLOW,), {"lines": 1}, DomainError, "lines"),
    ("plot_directions", (FLOW, np.zeros((5, 3))), {}, ShapeError, r"data of shape \(N, 2\)"),
    ("plot_directions", (FLOW, np.zeros((0, 2))), {}, DomainError, "at least one"),
    ("plot_directions", (FLOW, [[0.0, NAN]]), {}, NonFiniteError, "data to be finite; got 1 of 2"),
    ("plot_directions", (FLOW, POINTS), {"before": realnvp(3)}, ShapeError, "two dimensions"),
    ("plot_pairs", (POINTS,), {}, DomainError, "draws as a mapping"),
    ("plot_pairs", ({},), {}, DomainError, "a coordinate that varies.*got no site"),
    ("plot_pairs", ({"a": 1.0},), {}, ShapeError, "the first axis of every site"),
    ("plot_pairs", ({"a": [1.0, 2], "b": [1.0]},), {}, ShapeError, "the first axis of every site"),
    ("plot_pairs", ({"a": [1.0, NAN]},), {}, NonFiniteError, "draws of 'a' to be finite"),
    (
        "plot_pairs",
        ({"a": ["b"]},),
        {},
        DomainError,
        "draws of 'a' to be an array of real numbers",
    ),
    ("plot_pairs", ({"a": [1.0, 1.0]},), {}, DomainError, "a coordinate that varies"),
    (
        "plot_pairs",
        ({"a": [1.0, 2]},),
        {"sites": ["b"]},
        DomainError,
        "sites to be of 'a'; got 'b'",
    ),
    ("plot_pairs", ({"a": [1.0, 2]},), {"max_dims": 0}, DomainError, "max_dims"),
    ("plot_pairs", ({"a": [1.0, 2]}, {"b": [1.0]}), {}, DomainError, "draws and reference have"),
    (
        "plot_pairs",
        ({"a": [1.0, 2]}, {"a": POINTS}),
        {},
        ShapeError,
        "the site 'a' with one shape",
    ),
    ("plot_pairs", ({"a": [1j, 2]},), {}, DomainError, "real numbers"),
    ("plot_k_hat", ([],), {}, DomainError, "log-weights to be an array"),
    ("plot_k_hat", ({},), {}, DomainError, "one name or more"),
    ("plot_ranks", ([0.5],), {"num_draws": 9}, DomainError, "integers from 0 to num_draws=9"),
    ("plot_ranks", ([10],), {"num_draws": 9}, DomainError, "ranks from 10 to 10"),
    ("plot_ranks", ([-1],), {"num_draws": 9}, DomainError, "ranks to be integers"),
    ("plot_ranks", ([1],), {"num_draws": 0}, DomainError, "num_draws"),
    ("plot_ranks", (POINTS,), {"num_draws": 9}, ShapeError, r"ranks of shape \(N,\)"),
    ("plot_ranks", ({},), {"num_draws": 9}, DomainError, "one site or more"),
    ("plot_ranks", ({"a": 1},), {"num_draws": 9}, ShapeError, "ranks of 'a'"),
    ("plot_vsbc", ([1.5],), {}, DomainError, "between 0 and 1"),
    ("plot_vsbc", ([NAN, 0.5],), {}, NonFiniteError, "probabilities to be finite"),
    ("plot_images", (np.zeros((5, 5)),), {}, ShapeError, "images of shape"),
    ("plot_images", (np.zeros((2, 2, 5, 5)),), {}, ShapeError, "C = 1 or 3"),
    ("plot_images", (np.zeros((0, 5, 5)),), {}, DomainError, "at least one"),
    ("plot_images", (np.full((1, 2, 2), 300.0),), {}, DomainError, "numbers from 300 to 300"),
    ("plot_images", (np.full((1, 2, 2), -0.1),), {}, DomainError, "numbers from -0.1"),
    ("plot_images", (np.full((1, 2, 2), np.inf),), {}, NonFiniteError, "images to be finite"),
    ("plot_images", (PIXELS,), {"columns": 0}, DomainError, "columns"),
    ("plot_interpolations", (PIXELS,), {}, ShapeError, r"\(R, S, H, W\)"),
]


@pytest.mark.parametrize(("name", "arguments", "options", "error", "message"), BAD)
def test_bad_input(name, arguments, options, error, message):
    arguments = [argument() if argument is result else argument for argument in arguments]
    with pytest.raises(error, match=rf"^{name}: .*{message}"):
        getattr(plots, name)(*arguments, **options)
    assert not plt.get_fignums()


@pytest.mark.parametrize("bad", [NAN, np.inf])
def test_weights_that_are_no_weights(bad):
    """FAULTS 87."""
    with pytest.raises(NonFiniteError, match="got 1 of 60 that are NaN or infinite"):
        plots.plot_k_hat(np.append(POINTS[1:, 0], bad))
    with pytest.raises(NonFiniteError, match="a weight above zero"):
        plots.plot_k_hat({"zero": np.full(50, -np.inf)})


def test_draws_that_are_kept_are_drawn():
    kept = PosteriorDraws({"x": torch.as_tensor(POINTS).reshape(3, 20, 2)})
    points = plots.plot_pairs(kept)[1, 0].lines[0].get_xydata()
    np.testing.assert_array_equal(points, POINTS)
