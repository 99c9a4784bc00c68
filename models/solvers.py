"""Ordinary differential equations dz/dt = v(z, t) from t = 0 to 1, where a part of v depends on t alone.

That part, `terms`, is computed for the whole grid at once. Fixed steps are taken here, adaptive ones by torchdiffeq.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from errors import check_name

SOLVERS = ("euler", "heun", "dopri5")
SAMPLERS = ("ancestral", "ode")  # eq. 3 step by step, or the probability-flow ODE
POINTS = 20  # at most so many of the z on the way are shown
TOLERANCE = 1e-5  # relative and absolute, of dopri5
ADAPTIVE_STEPS = 50  # dopri5 chooses its steps, and shows z at the points of so many even ones

Terms = Callable[[Tensor], tuple[Tensor, ...]]  # t (n,) float64 -> tensors (n, ...)
Velocity = Callable[..., Tensor]  # z and one row of each term -> dz/dt


def kept_steps(steps: int) -> list[int]:
    """Return those of the steps 1..steps after which z is shown, evenly spread; the last one is among them."""
    return sorted({max(1, round(k * steps / POINTS)) for k in range(1, POINTS + 1)})


def grid(steps: int, device: torch.device) -> Tensor:
    """Return t_i = i / steps, float64, (steps + 1,)."""
    return torch.arange(steps + 1, device=device, dtype=torch.float64) / steps


def ode_ways(steps: Sequence[int], solver: Sequence[str]) -> list[dict]:
    """Return the arguments of `solve` for each solver and number of steps."""
    numbers = {name: [ADAPTIVE_STEPS] if name == "dopri5" else steps for name in solver}
    return [{"solver": name, "steps": n} for name in solver for n in numbers[name]]


def solve(
    velocity: Velocity, terms: Terms, z: Tensor, steps: int, solver: str, open_end: bool = False
) -> Iterator[Tensor]:
    """Yield z after each of kept_steps(steps); dopri5 chooses steps of its own, between the same points.

    open_end: the velocity has no meaning at t = 1, so the last step of heun is one of euler.
    Raises ValueError for a solver that is none of SOLVERS.
    """
    check_name("solver", solver, SOLVERS)
    if solver == "dopri5":
        yield from _adaptive(velocity, terms, z, steps)
        return
    rows = list(zip(*(term.unbind() for term in terms(grid(steps, z.device))), strict=True))
    kept, h = set(kept_steps(steps)), 1 / steps
    for i in range(steps):
        v = velocity(z, *rows[i])
        if solver == "heun" and not (open_end and i + 1 == steps):
            v = (v + velocity(z + h * v, *rows[i + 1])) / 2
        z = z + h * v
        if i + 1 in kept:
            yield z


def _adaptive(velocity: Velocity, terms: Terms, z: Tensor, steps: int) -> Iterator[Tensor]:
    from torchdiffeq import odeint

    def field(t: Tensor, z: Tensor) -> Tensor:
        return velocity(z, *(term[0] for term in terms(t.double().unsqueeze(0))))

    times = torch.cat([grid(steps, z.device)[:1], grid(steps, z.device)[kept_steps(steps)]])
    yield from odeint(field, z, times, method="dopri5", rtol=TOLERANCE, atol=TOLERANCE)[1:]
