"""Pair plots and pictures of images, by their artists."""

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from scipy import stats

import pyro_flows as pf
from pyro_flows.diagnostics import plots
from pyro_flows.infer import PosteriorDraws

RNG = np.random.default_rng(0)
DRAWS = {
    "mu": RNG.normal(size=2000),
    "theta": RNG.normal(size=(2000, 2)) @ [[1, 0.8], [0, 0.6]],
    "tau": RNG.exponential(size=2000),
}
REFERENCE = {name: RNG.permutation(values)[:900] + 0.1 for name, values in DRAWS.items()}


@pytest.fixture(autouse=True)
def _no_window():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def test_marginals_are_histograms():
    axes = plots.plot_pairs(DRAWS, REFERENCE)
    assert axes.shape == (4, 4)
    for index, (values, other) in enumerate(
        [
            (DRAWS["mu"], REFERENCE["mu"]),
            (DRAWS["theta"][:, 0], REFERENCE["theta"][:, 0]),
            (DRAWS["theta"][:, 1], REFERENCE["theta"][:, 1]),
            (DRAWS["tau"], REFERENCE["tau"]),
        ]
    ):
        _, ours, theirs = (patch.get_data() for patch in axes[index, index].patches)
        width = ours.edges[1] - ours.edges[0]
        for stairs, numbers in ((ours, values), (theirs, other)):
            expected = np.histogram(numbers, ours.edges)[0] / (numbers.size * width)
            np.testing.assert_allclose(stairs.values, expected)
            # Nearly all draws are in the picture.
            assert stairs.values.sum() * width == pytest.approx(1.0, abs=0.01)


def test_pairs_are_points_and_labelled():
    axes = plots.plot_pairs(DRAWS, REFERENCE)
    labels = ["mu", "theta[0]", "theta[1]", "tau"]
    assert [ax.get_xlabel() for ax in axes[-1]] == labels
    assert [ax.get_ylabel() for ax in axes[:, 0]] == labels
    np.testing.assert_array_equal(
        axes[3, 1].lines[0].get_xydata(), np.c_[DRAWS["theta"][::2, 0], DRAWS["tau"][::2]]
    )
    assert not any(axes[row, column].axison for row in range(4) for column in range(row + 1, 4))
    assert axes[3, 1].get_xlim() == axes[1, 1].get_xlim()
    legend = axes[0, 1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["draws", "reference"]
    # In grey, the lines tell them apart.
    styles = [line.get_linestyle() for line in legend.get_lines() or legend.get_patches()]
    assert len(set(styles)) == len(styles)


def contours(ax):
    return [entry for entry in ax.collections if hasattr(entry, "levels")]


def test_contours_hold_their_shares():
    """Against the closed form of a normal density."""
    first, second = np.random.default_rng(0).normal(size=(2, 200_000))
    cloud = {"a": first, "b": 3.0 * second}
    (found,) = contours(plots.plot_pairs(cloud)[1, 0])
    assert len(found.levels) == 2
    radii = stats.chi2(2).ppf([0.9, 0.5]) ** 0.5
    for path, radius in zip(found.get_paths(), radii, strict=True):
        distance = np.linalg.norm(path.vertices / [1.0, 3.0], axis=1)
        np.testing.assert_allclose(distance, radius, rtol=0.08)


def test_contours_end_with_the_support():
    pair = {"tau": DRAWS["tau"], "mu": DRAWS["mu"]}
    (found,) = contours(plots.plot_pairs(pair)[1, 0])
    cell = 0.03 * np.ptp(DRAWS["tau"])
    assert all(path.vertices[:, 0].min() > -cell for path in found.get_paths())


def test_only_draws():
    axes = plots.plot_pairs(DRAWS, sites="mu")
    assert axes.shape == (1, 1)
    assert [text.get_text() for text in axes[0, 0].get_legend().get_texts()] == ["draws"]
    assert len(axes[0, 0].patches) == 2


@pytest.mark.parametrize(
    ("sites", "labels"),
    [
        (None, ["mu", "theta[0]", "theta[1]"]),
        (["tau", "theta[1]"], ["tau", "theta[1]"]),
        (["theta[1]", "theta"], ["theta[1]", "theta[0]"]),
    ],
)
def test_choice_of_sites(sites, labels):
    axes = plots.plot_pairs(DRAWS, REFERENCE, sites=sites, max_dims=3)
    assert [ax.get_xlabel() for ax in axes[-1]] == labels
    title = axes[0, 1].get_legend().get_title().get_text()
    assert title == ("3 of 4 coordinates" if sites is None else "")


def test_sites_that_only_one_has_are_left_out():
    axes = plots.plot_pairs(DRAWS, {"tau": REFERENCE["tau"], "other": np.arange(5.0)})
    assert axes[0, 0].get_xlabel() == "tau"
    assert axes.shape == (1, 1)


def test_constant_coordinates_are_left_out_unless_they_are_named():
    factor = np.tril(np.random.default_rng(0).normal(size=(500, 2, 2)))
    factor[:, 0, 0] = 1.0
    labels = [ax.get_xlabel() for ax in plots.plot_pairs({"L": factor})[-1]]
    assert labels == ["L[1, 0]", "L[1, 1]"]
    axes = plots.plot_pairs({"L": factor}, sites=["L[0, 1]", "L[1, 1]"])
    axes[0, 0].figure.canvas.draw()
    assert axes[1, 0].get_xlabel() == "L[0, 1]"


class _Groups(dict):
    """Stand in for ArviZ's older form: a mapping of groups."""

    def groups(self):
        return list(self)

    @property
    def posterior(self):
        return self["posterior"]


def dataset(draws):
    arrays = {name: value.reshape(2, -1, *value.shape[1:]) for name, value in draws.items()}
    return xr.Dataset(
        {
            name: (["chain", "draw", *(f"{name}_dim" for _ in value.shape[2:])], value)
            for name, value in arrays.items()
        }
    )


FORMS = {
    "posterior draws": lambda draws: PosteriorDraws(
        {name: torch.as_tensor(value).unflatten(0, (2, -1)) for name, value in draws.items()}
    ),
    "dataset": dataset,
    "dims in another order": lambda draws: dataset(draws).transpose(..., "draw", "chain"),
    "tree": lambda draws: xr.DataTree.from_dict({"posterior": dataset(draws)}),
    "its posterior": lambda draws: xr.DataTree.from_dict({"posterior": dataset(draws)})[
        "posterior"
    ],
    "groups": lambda draws: _Groups(posterior=dataset(draws), sample_stats=xr.Dataset()),
    "tensors": lambda draws: {name: torch.as_tensor(value) for name, value in draws.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_draws(form):
    axes = plots.plot_pairs(FORMS[form](DRAWS), FORMS[form](REFERENCE), max_dims=2)
    expected = plots.plot_pairs(DRAWS, REFERENCE, max_dims=2)
    for ours, theirs in zip(axes.flat, expected.flat, strict=True):
        for found, known in zip(ours.lines, theirs.lines, strict=True):
            np.testing.assert_array_equal(found.get_xydata(), known.get_xydata())
        assert ours.get_xlabel() == theirs.get_xlabel()


def test_outliers_do_not_widen_the_picture():
    values = np.append(np.random.default_rng(0).normal(size=5000), [1e6, -1e6])
    low, high = plots.plot_pairs({"x": values})[0, 0].get_xlim()
    assert high - low < 10


# Images.


@pytest.mark.parametrize("scale", [1.0, 255.0])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_images_side_by_side(scale, channels):
    shape = (5, 4, 6) if channels is None else (5, channels, 4, 6)
    pixels = np.random.default_rng(0).uniform(size=shape)
    pixels.flat[0] = 1.0
    ax = plots.plot_images(scale * pixels, columns=2)
    canvas = ax.images[0].get_array()
    assert canvas.shape == (14, 13) + ((3,) if channels == 3 else ())
    for index in range(5):
        row, column = divmod(index, 2)
        drawn = canvas[5 * row : 5 * row + 4, 7 * column : 7 * column + 6]
        image = pixels[index]
        if channels == 1:
            image = image[0]
        elif channels == 3:
            image = image.transpose(1, 2, 0)
        np.testing.assert_allclose(drawn, image)
    assert np.ptp(canvas[4]) == 0
    assert ax.images[0].get_clim() == (0.0, 1.0)
    assert not ax.axison


@pytest.mark.parametrize(("count", "shape"), [(1, (4, 4)), (4, (9, 9)), (5, (9, 14))])
def test_images_make_a_square_by_default(count, shape):
    canvas = plots.plot_images(np.zeros((count, 4, 4))).images[0].get_array()
    assert canvas.shape == shape
    canvas = plots.plot_images(np.zeros((count, 4, 4)), columns=50).images[0].get_array()
    assert canvas.shape == (4, 5 * count - 1)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (torch.tensor([[[0, 255]]], dtype=torch.uint8), [0.0, 1.0]),
        (torch.tensor([[[False, True]]]), [0.0, 1.0]),
        (np.array([[[-1e-4, 1.0001]]]), [0.0, 1.0]),
        (np.array([[[0.0, 255.9]]]), [0.0, 1.0]),
        (np.array([[[51.0, 102.0]]]), [0.2, 0.4]),
    ],
)
def test_ranges_of_images(pixels, expected):
    np.testing.assert_allclose(plots.plot_images(pixels).images[0].get_array(), [expected])


def test_interpolations_are_rows():
    ends = np.random.default_rng(0).uniform(size=(2, 3, 1, 4, 4))
    share = np.linspace(0, 1, 5)[:, None, None, None]
    rows = np.stack(
        [(1 - share) * first + share * last for first, last in zip(*ends, strict=True)]
    )
    ax = plots.plot_interpolations(rows)
    canvas = ax.images[0].get_array()
    assert canvas.shape == (14, 24)
    np.testing.assert_allclose(canvas[5:9, :4], ends[0, 1, 0])
    np.testing.assert_allclose(canvas[5:9, 20:], ends[1, 1, 0])
    ticks = dict(zip([t.get_text() for t in ax.get_xticklabels()], ax.get_xticks(), strict=True))
    assert ticks == {"0": 1.5, "½": 11.5, "1": 21.5}
    assert plots.plot_interpolations(rows[:, :1]).images[0].get_array().shape == (14, 4)


def test_colours_follow_the_users_style():
    with plt.style.context({"axes.prop_cycle": plt.cycler(color=["black", "red"])}):
        ax = plots.plot_pairs(DRAWS, sites="mu")[0, 0]
        assert to_rgba(ax.patches[1].get_edgecolor()) == to_rgba("black")


def test_sites_that_are_not_drawn_may_hold_anything():
    draws = {**DRAWS, "broken": np.full(2000, np.nan), "word": np.array(["a"] * 2000)}
    assert plots.plot_pairs(draws, REFERENCE).shape == (4, 4)
    assert plots.plot_pairs(draws, sites=["mu", "tau"]).shape == (2, 2)


@pytest.mark.parametrize("name", ["theta[2]", "theta[0, 1]", "mu[0]", "theta[x"])
def test_coordinates_that_a_site_does_not_have(name):
    with pytest.raises(pf.DomainError, match=r"a coordinate of the site '(theta|mu)', of shape"):
        plots.plot_pairs(DRAWS, sites=[name])


def test_sites_with_brackets_in_their_names():
    axes = plots.plot_pairs({"a[0]": DRAWS["mu"], "a": DRAWS["tau"]}, sites=["a[0]", "a"])
    assert [ax.get_xlabel() for ax in axes[-1]] == ["a[0]", "a"]
