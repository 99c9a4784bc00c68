"""The learnable noise schedule of continuous time (appendix B of the paper; Kingma et al. 2021).

SNR(t) = exp(-gamma(t)) and alpha_bar_t = sigmoid(-gamma(t)), with gamma decreasing from gamma_0 at t = 0 (noise) to
gamma_1 at t = 1 (clean).
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

# Sane starting values: the loss is weighted by SNR'(t) = -gamma'(t) exp(-gamma(t)). With gamma_1 = -3 that is at most
# a hundred, at the clean end where u_hat is easy; with gamma_0 = 2 it is 0.7 at the noisy end, where the class is
# decided. alpha_bar_0 = 0.12 is much for an inference that starts at pure noise, but the KL term raises gamma_0.
GAMMA_0, GAMMA_1 = 2.0, -3.0


class LearnedSchedule(nn.Module):
    """gamma(t) = gamma_0 + (gamma_1 - gamma_0) gbar(t), gbar(t) = (g(t) - g(0)) / (g(1) - g(0)).

    g is a network of two layers whose weights are positive, since they are softplus of the parameters, so it rises;
    gamma_0 - gamma_1 is positive in the same way. All are trained. gamma starts close to a straight line. Computed
    in float64.
    """

    def __init__(self, gamma_0: float = GAMMA_0, gamma_1: float = GAMMA_1, hidden: int = 32):
        super().__init__()
        self.raw_gap = nn.Parameter(torch.tensor(_inverse_softplus(gamma_0 - gamma_1)))
        self.gamma_1 = nn.Parameter(torch.tensor(gamma_1))
        steepness = 8.0
        centres = (torch.arange(hidden) + 0.5) / hidden  # of the sigmoids, spread over [0, 1]
        self.raw_first = nn.Parameter(torch.full((hidden,), _inverse_softplus(steepness)))
        self.bias = nn.Parameter(-steepness * centres)
        self.raw_second = nn.Parameter(torch.full((hidden,), _inverse_softplus(1 / hidden)))
        # made once: a constant that is made in every step waits for the GPU
        self.register_buffer("ends", torch.tensor([0.0, 1.0], dtype=torch.float64), persistent=False)

    @property
    def gamma_0(self) -> Tensor:
        """Return gamma_0, which is more than gamma_1."""
        return self.gamma_1 + F.softplus(self.raw_gap)

    def g(self, t: Tensor) -> Tensor:
        """Return g(t); t of any shape."""
        first, second = F.softplus(self.raw_first.double()), F.softplus(self.raw_second.double())
        return torch.sigmoid(t.unsqueeze(-1) * first + self.bias.double()) @ second

    def gamma(self, t: Tensor) -> Tensor:
        """Return gamma(t); t float64 in [0, 1], of any shape."""
        g_0, g_1 = self.g(self.ends)
        gbar = (self.g(t) - g_0) / (g_1 - g_0)
        return self.gamma_1.double() + F.softplus(self.raw_gap.double()) * (1 - gbar)

    def gamma_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma(t) and gamma'(t), the latter by forward-mode differentiation."""
        with forward_ad.dual_level():
            gamma = self.gamma(forward_ad.make_dual(t, torch.ones_like(t)))
            return tuple(forward_ad.unpack_dual(gamma))

    def alpha_bar(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.gamma(t))

    def alpha_bar_and_snr_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_bar_t and SNR'(t) = -gamma'(t) exp(-gamma(t))."""
        gamma, slope = self.gamma_and_slope(t)
        return torch.sigmoid(-gamma), -slope * torch.exp(-gamma)


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
