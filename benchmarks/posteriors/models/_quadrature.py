"""Integrals of functions of time up to many times at once, by Gauss-Legendre rules on panels."""

import numpy as np

ORDER = 4
# The first interval is split in panels that grow by this factor, for what changes within seconds.
FIRST_PANELS, GROWTH = 9, 4.0


def graded(start, times):
    """Return edges of panels: the times, and between the start and the first ever narrower."""
    shares = GROWTH ** -np.arange(FIRST_PANELS - 1.0, -1, -1)
    return np.concatenate([[start], start + shares * (times[0] - start), times[1:]])


def quadrature(edges, times):
    """Return nodes, and what values there are multiplied by to integrate the function.

    Args:
        edges: Of the panels, ascending.
        times: Some of the edges.

    Returns:
        The N nodes, and a matrix of shape ``(N, N + T)``: ``values @ matrix`` are the integrals
        from the first edge to the nodes and to the times.
    """
    nodes, weights, inner = _rule()
    widths = np.diff(edges)[:, None, None, None]
    # Axes: panel and node of the value, panel and node of the integral's end.
    before = np.tri(len(widths), k=-1).T[:, None, :, None] * weights[:, None, None]
    within = np.eye(len(widths))[:, None, :, None] * inner[:, None, :]
    to_nodes = widths * (before + within)
    to_times = widths[..., 0] * weights[:, None] * (edges[1:, None, None] <= np.array(times))
    nodes = (edges[:-1, None] + widths[..., 0, 0] * nodes).ravel()
    return nodes, np.hstack([matrix.reshape(len(nodes), -1) for matrix in (to_nodes, to_times)])


def _rule():
    """Return nodes and weights on [0, 1], and the integrals from 0 of Lagrange's polynomials."""
    nodes, weights = np.polynomial.legendre.leggauss(ORDER)
    nodes, powers = (nodes + 1) / 2, np.arange(1, ORDER + 1)
    monomials = nodes[:, None] ** powers / powers
    lagrange = np.linalg.inv(np.vander(nodes, increasing=True))
    return nodes, weights / 2, (monomials @ lagrange).T
