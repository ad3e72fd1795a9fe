"""What a fit minimises: minus the ELBO, or minus the importance-weighted bound."""

import math

from torch import Tensor

from pyro_flows import _checks
from pyro_flows.errors import DomainError
from pyro_flows.infer.engine import Batch, Loss
from pyro_flows.infer.particles import Particles, Scores
from pyro_flows.infer.tracer import sample_sites
from pyro_flows.transforms.continuous import TransportCost, billed

GRADIENTS = ("path", "total", "dreg")


class VariationalLoss:
    r"""Minus a lower bound of the evidence, averaged over draws of the guide.

    .. math:: -\mathrm{E} \log \frac{1}{K} \sum_{k=1}^K w_k, \qquad
        w_k = \frac{p(z_k, y)}{q(z_k)}

    With ``num_importance`` :math:`K = 1` it is minus the ELBO.

    Args:
        scorer: Draws and scores the particles.
        particles: Number of draws, a multiple of ``num_importance``.
        num_importance: Number of draws under one logarithm, ``K``.
        elbo_weight: Weight of the ELBO, which is added to the bound where ``K`` is above one. The
            bound alone does not mind draws of the guide at which the model is next to impossible.
        penalty: What the draws cost on their way through continuous flows; it adds to the
            gradient, and the loss does not show it.
        squared: Whether the guide's gradient is the doubly reparametrised one, which needs path
            gradients; else it is the total one.

    Raises:
        DomainError: ``particles`` is no multiple of ``num_importance``, or the guide has sites
            without reparametrised draws, where ``num_importance`` is above one.

    Reference:
        Burda, Grosse & Salakhutdinov (2016), *Importance weighted autoencoders*, equation 8;
        Tucker, Lawson, Gu & Maddison (2019), *Doubly reparameterized gradient estimators for
        Monte Carlo objectives*, equation 6.
    """

    def __init__(
        self,
        scorer: Particles,
        particles: int,
        *,
        num_importance: int = 1,
        elbo_weight: float = 0.0,
        penalty: TransportCost | None = None,
        squared: bool = False,
    ) -> None:
        if particles % num_importance:
            raise _checks.refusal(
                DomainError,
                "fit",
                expected="particles to be a multiple of num_importance",
                got=f"particles={particles}, num_importance={num_importance}",
            )
        if num_importance > 1:
            _check_reparametrised(scorer)
        self._scorer, self._particles = scorer, particles
        self._num_importance, self._squared = num_importance, squared
        self._elbo_weight, self._penalty = elbo_weight, penalty

    def __call__(self, batch: Batch) -> Loss:
        """Return the loss of fresh draws, and what to differentiate."""
        self._scorer.args, self._scorer.kwargs = batch
        if self._penalty is None:
            return self._bound()
        with billed(self._penalty, "fit") as bill:
            loss = self._bound()
        cost = bill.mean(self._particles)
        return loss._replace(surrogates=tuple(each + cost for each in loss.surrogates))

    def _bound(self) -> Loss:
        scores = self._scorer.score(self._particles)
        if self._num_importance == 1:
            value = (scores.log_q - scores.log_p).mean()
            return Loss(value, (-scores.surrogate.mean(),))
        return self._importance_weighted(scores)

    def _importance_weighted(self, scores: Scores) -> Loss:
        rows, of_elbo = (-1, self._num_importance), self._elbo_weight / self._num_importance
        log_weights = (scores.log_p - scores.log_q).detach().reshape(rows)
        bound = log_weights.logsumexp(-1).mean() - math.log(self._num_importance)
        value = -bound - self._elbo_weight * log_weights.mean()
        shares = log_weights.softmax(-1)

        def mean(shares: Tensor, terms: Tensor) -> Tensor:
            return -((shares + of_elbo) * terms.reshape(rows)).sum(-1).mean()

        of_guide = mean(shares.square() if self._squared else shares, scores.surrogate)
        return Loss(value, (of_guide, mean(shares, scores.log_p)))


def _check_reparametrised(scorer: Particles) -> None:
    guide_trace = scorer.single[0]
    without = [site["name"] for site in sample_sites(guide_trace) if not site["fn"].has_rsample]
    if without:
        raise _checks.refusal(
            DomainError,
            "fit",
            expected="a guide of reparametrised draws, for num_importance above 1",
            got=f"none at {', '.join(map(repr, without))}",
            advice="Train with num_importance=1.",
        )
