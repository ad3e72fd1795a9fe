"""What linear regressions share."""

import numpy as np
from scipy import stats


def linear(x, beta):
    """Return ``x beta`` for rows on the last plate, which ``beta`` has an axis of size 1 for."""
    mean = beta @ x.T
    return mean if beta.dim() == 1 else mean.squeeze(-2)


def log_likelihood(y, predictors, sites):
    """Return the log-density of normal data at draws of ``beta`` and ``sigma``, in NumPy.

    Args:
        y: The data.
        predictors: What the coefficients multiply, in their order; the first may be 1.
        sites: The draws.
    """
    mean = sum(
        beta[:, None] * np.broadcast_to(predictor, len(y))
        for beta, predictor in zip(sites["beta"].T, predictors, strict=True)
    )
    return stats.norm.logpdf(y, mean, sites["sigma"][:, None]).sum(-1)
