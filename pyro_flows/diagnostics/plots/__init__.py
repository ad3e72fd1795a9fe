"""Pictures of fits, posteriors and flows, drawn with matplotlib (``pyro-flows[plots]``)."""

from pyro_flows.diagnostics.plots.directions import plot_directions
from pyro_flows.diagnostics.plots.flow2d import plot_density, plot_grid
from pyro_flows.diagnostics.plots.images import plot_images, plot_interpolations
from pyro_flows.diagnostics.plots.loss import plot_loss
from pyro_flows.diagnostics.plots.pairs import plot_pairs
from pyro_flows.diagnostics.plots.ranks import plot_ranks, plot_vsbc
from pyro_flows.diagnostics.plots.weights import plot_k_hat

__all__ = [
    "plot_density",
    "plot_directions",
    "plot_grid",
    "plot_images",
    "plot_interpolations",
    "plot_k_hat",
    "plot_loss",
    "plot_pairs",
    "plot_ranks",
    "plot_vsbc",
]
