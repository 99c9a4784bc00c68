"""Draw random numbers for the rows of a batch, also where several processes share it and each has a part of the rows.

Each of them draws for the whole batch and keeps what is for its rows: an image meets the same numbers in any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """The rows from `first` to before `end` of a batch of `whole` rows."""

    first: int
    end: int
    whole: int

    @property
    def fraction(self) -> float:
        """Return the part of the batch's rows that these are."""
        return (self.end - self.first) / self.whole


@dataclass(frozen=True)
class Share:
    """Stands for a generator where a network is trained; every process draws of it for the whole batch."""

    generator: torch.Generator
    part: Part


Source = torch.Generator | Share | None  # None: torch's default generator


def share(generator: torch.Generator, part: Part | None) -> Source:
    """Return the generator, as a Share of it where a process has a part of the batch."""
    return Share(generator, part) if part else generator


def draw_rows(rows: int, source: Source, draw: Callable[[int, torch.Generator | None], Tensor]) -> Tensor:
    """Return draw(rows, generator), of shape (rows, ...); of a Share what it draws for these rows of the whole batch.

    Several noised embeddings of an image: rows are M copies of the part one after the other, see `repeat`.
    """
    if not isinstance(source, Share):
        return draw(rows, source)
    part = source.part
    copies = rows // (part.end - part.first)
    drawn = draw(copies * part.whole, source.generator).unflatten(0, (copies, part.whole))
    return drawn[:, part.first : part.end].flatten(0, 1)


def normal_like(like: Tensor, source: Source) -> Tensor:
    """Draw standard normal numbers of the shape of `like` (rows, ...)."""

    def draw(rows: int, generator: torch.Generator | None) -> Tensor:
        return like.new_empty(rows, *like.shape[1:]).normal_(generator=generator)

    return draw_rows(len(like), source, draw)
