"""Draws that are kept: their shapes."""

import pytest
import torch

import pyro_flows as pf


@pytest.mark.parametrize(
    ("sites", "stats", "error"),
    [
        ({}, {}, pf.DomainError),
        ({"a": torch.zeros(1, 0)}, {}, pf.DomainError),
        ({"a": torch.zeros(3)}, {}, pf.ShapeError),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)}, {}, pf.ShapeError),
        ({"a": torch.zeros(2, 3)}, {"log_p": torch.zeros(3)}, pf.ShapeError),
    ],
)
def test_shapes_that_do_not_fit_are_refused(sites, stats, error):
    with pytest.raises(error, match="PosteriorDraws: expected"):
        pf.PosteriorDraws(sites, stats)


def test_flat_keeps_the_order_of_chains():
    values = torch.arange(12.0).reshape(2, 3, 2)
    draws = pf.PosteriorDraws({"a": values}, {"log_p": torch.zeros(2, 3)})
    torch.testing.assert_close(draws.flat()["a"], torch.arange(12.0).reshape(6, 2))
