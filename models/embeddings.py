"""Class embeddings W_embed (m, d): one-hot, learned vectors, and prototypes that start as training images."""

import torch
from torch import Tensor, nn


def one_hot_embedding(num_classes: int) -> Tensor:
    """Return the identity; d = m."""
    return torch.eye(num_classes)


def initial_embedding(
    num_classes: int, embedding_dim: int, init: str, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the start of a learned W_embed, shape (m, d).

    `orthogonal`: orthonormal rows where m <= d, else orthonormal columns. `random`: standard normal entries.
    """
    W = torch.empty(num_classes, embedding_dim)
    if init == "orthogonal":
        return nn.init.orthogonal_(W, generator=generator)
    if init == "random":
        return W.normal_(generator=generator)
    raise ValueError(f"no embedding init {init!r}: orthogonal or random")


def medoid(points: Tensor, chunk_elements: int = 2**25) -> int:
    """Return the index of the point with the smallest median distance to the other points.

    points (n, d). Distances are computed for a chunk of rows at a time, about chunk_elements of them at once.
    The median of an even number of distances is the lower of the two in the middle.
    """
    n = len(points)
    if n == 1:
        return 0
    rows = max(1, chunk_elements // n)
    medians = []
    for start in range(0, n, rows):
        distances = torch.cdist(points[start : start + rows], points)  # (rows, n)
        distances.diagonal(start).fill_(float("inf"))  # a point is not one of the others
        medians.append(distances.kthvalue(n // 2, dim=1).values)  # lower median of n - 1
    return int(torch.cat(medians).argmin())


def prototype_indices(images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return for each class the index of its medoid image, shape (m,).

    images (n, ...) uint8, labels (n,). One class at a time is turned into floats.
    """
    chosen = []
    for y in range(num_classes):
        members = (labels == y).nonzero().flatten()
        if len(members) == 0:
            raise ValueError(f"class {y} has no training image to take as its prototype")
        points = images[members].flatten(1).float()  # (n_y, C*H*W)
        chosen.append(members[medoid(points)])
    return torch.stack(chosen)
