"""Noise that fills the gaps between integers: uniform, or learnt."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, logsigmoid

from pyro_flows import _checks
from pyro_flows.numerics import LOG_SQRT_TAU, soft_bound, widen

# Narrower noise would only ask the flow for steeper slopes.
_LOG_SCALE_BOUND = 3.0
# A logit-normal draw of this scale is as near to a uniform one as one can be.
_WIDE = 1.6


class UniformNoise(nn.Module):
    r"""Noise that is uniform on :math:`[0, 1)`, whatever the integers are.

    Reference:
        Theis, van den Oord & Bethge (2016), *A note on the evaluation of generative models*,
        section 3.1.

    Example:
        >>> import torch
        >>> noise, log_density = UniformNoise()(torch.zeros(5, 3))
        >>> noise.shape, log_density.tolist()
        (torch.Size([5, 3]), [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return noise of the shape of the integers, and its log-density.

        Args:
            x: Integers, of shape ``(*, D)``.
        """
        noise = torch.rand(x.shape, dtype=x.dtype, device=x.device)
        return noise, x.new_zeros(x.shape[:-1])


class VariationalNoise(nn.Module):
    r"""Noise on :math:`(0, 1)` that is learnt with the flow, to make its task the easiest.

    .. math:: u_i = \sigma(m_i + e^{s_i} \epsilon_i), \quad \epsilon \sim N(0, I), \qquad
        (m_i, s_i) = t(x_i) + g_i(x)

    The table :math:`t` has one entry for each value, so that the black pixels of a background,
    say, may take narrow noise; a network :math:`g`, if there is one, sees all integers.

    Args:
        num_values: Number of values; integers are from 0 to ``num_values - 1``.
        network: Maps integers, scaled to ``[-1, 1]``, of shape ``(*, D)``, to ``(*, 2 D)``: all
            locations, then all log-scales.

    Raises:
        DomainError: ``num_values`` is not an integer of at least 2, or the network is no module.

    Reference:
        Ho, Chen, Srinivas, Duan & Abbeel (2019), *Flow++: Improving flow-based generative models
        with variational dequantization and architecture design*, section 3.1.

    Example:
        >>> import torch
        >>> noise, log_density = VariationalNoise(256)(torch.full((5, 3), 255.0))
        >>> bool(((noise > 0) & (noise < 1)).all()), log_density.shape
        (True, torch.Size([5]))
    """

    def __init__(self, num_values: int = 256, *, network: nn.Module | None = None) -> None:
        super().__init__()
        who = type(self).__name__
        self.num_values = _checks.check_count(who, "num_values", num_values, least=2)
        if network is not None:
            _checks.check_module(who, "network", network)
        self.loc = nn.Parameter(torch.zeros(num_values))
        self.log_scale = nn.Parameter(torch.full((num_values,), _WIDE).log())
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return noise of the shape of the integers, and its log-density.

        Args:
            x: Integers from 0 to ``num_values - 1``, of shape ``(*, D)``.
        """
        table = torch.stack([self.loc, self.log_scale], -1)
        loc, log_scale = embedding(x.long(), table).unbind(-1)
        if self.network is not None:
            scaled = x * (2.0 / (self.num_values - 1)) - 1.0
            by_network = self.network(scaled).unflatten(-1, (2, -1))
            loc, log_scale = loc + by_network[..., 0, :], log_scale + by_network[..., 1, :]
        log_scale = soft_bound(log_scale, _LOG_SCALE_BOUND)
        # Not by randn_like: what depends on nothing is drawn outside of a compiled step.
        eps = torch.randn(x.shape, dtype=x.dtype, device=x.device)
        logit = widen(loc + log_scale.exp() * eps)
        slope = logsigmoid(logit) + logsigmoid(-logit)
        log_density = -0.5 * eps.square() - LOG_SQRT_TAU - log_scale - slope
        return torch.sigmoid(logit).to(x.dtype), log_density.sum(-1)
