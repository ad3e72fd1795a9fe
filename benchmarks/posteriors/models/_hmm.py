"""What hidden Markov models of two states share."""

import numpy as np
import torch


def log_marginal(log_theta, log_seen):
    """Sum over the paths of a chain by a tree: neighbours are multiplied until one is left.

    Args:
        log_theta: Log-probabilities of the moves, of shape ``(..., 2, 2)``.
        log_seen: Log-densities of the data in each state, of shape ``(..., 2, T)``.
    """
    # Time is last, so that operators run along it.
    chain = log_theta.unsqueeze(-1) + log_seen[..., None, :, 1:]
    while chain.shape[-1] > 1:
        even = chain.shape[-1] // 2 * 2
        pairs = _multiplied(chain[..., :even:2], chain[..., 1:even:2])
        chain = torch.cat([pairs, chain[..., even:]], -1)
    return (log_seen[..., :, :1] + chain.squeeze(-1)).logsumexp((-2, -1))


def _multiplied(a, b):
    """Return the logs of products of 2 x 2 matrices that are given by their logs."""
    first = a[..., :, :1, :] + b[..., :1, :, :]
    return torch.logaddexp(first, a[..., :, 1:, :] + b[..., 1:, :, :])


def forward(log_theta, log_seen):
    """Sum over the paths step by step, in NumPy.

    Args:
        log_theta: As for :func:`log_marginal`, of shape ``(S, 2, 2)``.
        log_seen: Of shape ``(S, 2, T)``.
    """
    gamma = log_seen[:, :, 0]
    for t in range(1, log_seen.shape[-1]):
        gamma = np.logaddexp.reduce(gamma[:, :, None] + log_theta, axis=1) + log_seen[:, :, t]
    return np.logaddexp.reduce(gamma, axis=1)
