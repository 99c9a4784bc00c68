"""Named random streams: every random number comes from a generator keyed by (seed, purpose, index).

A block's noise and dropout therefore do not depend on which other blocks are trained, or in which order.
"""

import hashlib
from contextlib import contextmanager

import torch

ON_CPU = ("order",)  # streams that are kept on the CPU, whatever the device of the others


def stream_seed(seed: int, purpose: str, index: int = 0) -> int:
    """Return a 32-bit seed (all that torch's CPU generator uses of one) from the stream's name."""
    name = f"{seed}/{purpose}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=4).digest(), "little")


class Streams:
    """Keep the generators of a run on `device`; those that have been asked for are part of its state."""

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.seed = seed
        self.device = torch.device(device)
        self._generators: dict[str, torch.Generator] = {}

    def get(self, purpose: str, index: int = 0, device: torch.device | str | None = None) -> torch.Generator:
        """Return the stream's generator, which goes on where it was last left."""
        key = f"{purpose}/{index}"
        if key not in self._generators:
            self._generators[key] = self.fresh(purpose, index, device)
        return self._generators[key]

    def fresh(self, purpose: str, index: int = 0, device: torch.device | str | None = None) -> torch.Generator:
        """Return a generator at the start of the stream, kept nowhere."""
        generator = torch.Generator(self.device if device is None else device)
        return generator.manual_seed(stream_seed(self.seed, purpose, index))

    @contextmanager
    def seeded(self, purpose: str, index: int = 0):
        """Make torch's global CPU generator this stream in the with block: for layers that draw their start from it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self.seed, purpose, index))
            yield

    def state_dict(self) -> dict:
        states = {key: (g.device.type, g.get_state()) for key, g in self._generators.items()}
        return {"seed": self.seed, "device": self.device.type, "states": states}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved state; streams of another kind of device than ours begin anew.

        Raises ValueError for a device that there is not.
        """
        if state["device"] not in ("cpu", "cuda"):
            raise ValueError(f"its random states are of device {state['device']}")
        self.seed = state["seed"]
        for key, (kind, value) in state["states"].items():  # after a merge they may be of several kinds
            purpose, index = key.rsplit("/", 1)
            device = "cpu" if purpose in ON_CPU else self.device
            if kind == torch.device(device).type:
                self.get(purpose, int(index), device).set_state(value)


def kinds_of_devices(state: dict) -> set[str]:
    """Return the kinds of device, cpu or cuda, of the streams in a saved state that follow the device."""
    return {kind for key, (kind, _) in state["states"].items() if key.rsplit("/", 1)[0] not in ON_CPU}
