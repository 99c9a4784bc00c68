"""The adjoint baseline of the paper: a neural ODE whose gradients come from a second ODE, not from a stored graph.

The vector field is the network of continuous time; a linear layer on z at t = 1 gives the class.
Try: python main.py --method adjoint --dataset digits --steps 20
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.continuous import ContinuousNet


class AdjointNet(ContinuousNet):
    """A neural ODE dz/dt = v(z, x, t) from z_0 ~ N(0, I), with theta_out on z_1.

    Euler's method trains it in as many steps as the last of `steps` says.

    Arguments as those of NoPropNetDT.
    """

    loss_terms = ("cross_entropy",)

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        W_embed: Tensor,
        *,
        learn_embedding: bool = False,
        prototype: bool = False,
        encoder: str = "paper",
        steps: Sequence[int] = (1000,),
    ):
        super().__init__(image_shape, W_embed, learn_embedding, prototype, encoder)
        self.start_theta_out_at_embeddings()
        self.steps = steps[-1]
        if prototype:
            self.block.label_path.path.drop = 0.0  # along the path the field has to be one field

    @staticmethod
    def ways(steps: Sequence[int] = (1000,)) -> list[dict]:
        """Return a way of inference for each number of steps."""
        return [{"steps": n} for n in steps]

    def loss(
        self, x: Tensor, y: Tensor, noise: torch.Generator | None = None, drop: torch.Generator | None = None
    ) -> tuple[Tensor]:
        """Return the cross-entropy. x (B, C, H, W), y (B,) int64."""
        from torchdiffeq import odeint_adjoint

        state = self.noise([noise], len(x))[0], self.block.image_part(x, drop)
        ends = torch.tensor([0.0, 1.0], device=x.device)
        path, _ = odeint_adjoint(
            self.field,
            state,
            ends,
            method="euler",
            options={"grid_constructor": self._grid},
            adjoint_params=self._field_parameters(),
        )
        return (F.nll_loss(self.log_prob(path[-1]), y),)

    def field(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the velocity of the state (z, image_part), whose second part stands still.

        As part of the state the image features get their gradient from the adjoint ODE; a tensor that the field merely
        captured would get none.
        """
        z, image_part = state
        return self.velocity(z, image_part, self.block.time_part(t.unsqueeze(0))), torch.zeros_like(image_part)

    def times(self, steps: int | None = None, **how) -> list[float]:
        return super().times(steps or self.steps)

    def path(
        self, z: Tensor, image_part: Tensor, generators: Sequence, steps: int | None = None, **how
    ) -> Iterator[Tensor]:
        """Yield z as ContinuousNet does; in as many steps as it is trained in, unless told otherwise."""
        return super().path(z, image_part, generators, steps or self.steps, **how)

    def _grid(self, field, state: Tensor, ends: Tensor) -> Tensor:
        """Return the grid of exactly `steps` steps, both ways; torchdiffeq's step_size may take one more."""
        return torch.linspace(ends[0].item(), ends[-1].item(), self.steps + 1, device=ends.device)

    def _field_parameters(self) -> tuple[nn.Parameter, ...]:
        """Return what the vector field reads; the image path, outside of it, gets its gradient through image_part."""
        of_field = [p for name, p in self.block.named_parameters() if not name.startswith("image_path.")]
        return (*of_field, self.W_embed) if self.W_embed.requires_grad else tuple(of_field)
