"""Gather what the blocks add to the gradient of the shared parameters theta_out and W_embed."""

from collections.abc import Iterable

import torch
from torch import nn


class SharedGradient:
    """The sum over blocks of their gradients of the shared parameters, kept in double precision.

    There a sum of float32 numbers is exact (as long as they lie within a factor of about 2^25 of each other), so it
    does not depend on the order of the blocks, nor on the ranks that hold them; it is rounded once, at the end.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = list(parameters)
        self.sizes = [parameter.numel() for parameter in self.parameters]
        device = self.parameters[0].device if self.parameters else None
        self.total = torch.zeros(sum(self.sizes), dtype=torch.float64, device=device)

    def take(self) -> None:
        """Add the gradient that a backward pass has left at the parameters, and clear it there."""
        if self.parameters:
            self.total += torch.cat([parameter.grad.flatten() for parameter in self.parameters])
            for parameter in self.parameters:
                parameter.grad = None

    def give(self) -> None:
        """Leave the sum at the parameters, for their optimizer, and start from zero."""
        for parameter, part in zip(self.parameters, self.total.split(self.sizes), strict=True):
            parameter.grad = part.to(parameter.dtype, copy=True).view_as(parameter)
        self.total.zero_()
