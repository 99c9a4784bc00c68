"""NETWORKS: what a block of DiffusionBlocks is, and the same network as a whole, for comparison.

A block is a module with `image_part(x, generator)`, what depends on the image alone and is computed once for all runs
and steps; `time_part(t)` of noise levels t (n,), computed once for all steps; `logits(z, image_part, time_part,
generator)`; and `forward(z, x, t, generator)`, all of it. A whole network is an image encoder, see ENCODERS.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from models.encoders import make_encoder
from models.time_block import TimeBlock
from models.vit import ViT, ViTPiece


class Shape(NamedTuple):
    """Hold what a network is made for; layers, width, heads and patch (pixels) are those of a transformer."""

    image_shape: tuple[int, int, int]
    embedding_dim: int
    num_classes: int
    prototype: bool = False
    encoder: str = "paper"
    layers: int = 12
    width: int = 128
    heads: int = 4
    patch: int = 4


class Network(NamedTuple):
    """piece: makes one of K blocks; whole: makes the network as an image encoder."""

    piece: Callable[[Shape, int], nn.Module]
    whole: Callable[[Shape], nn.Module]


def _noprop_piece(shape: Shape, pieces: int) -> TimeBlock:
    return TimeBlock(*shape[:5], time_scale=1.0)


def _noprop_whole(shape: Shape) -> nn.Module:
    return make_encoder(shape.encoder, shape.image_shape)


def _vit_piece(shape: Shape, pieces: int) -> ViTPiece:
    if shape.layers % pieces:
        raise ValueError(f"{shape.layers} layers cannot be cut into {pieces} equal pieces: change --vit-layers")
    if shape.prototype:
        raise ValueError("a transformer takes embeddings that are vectors: take --embedding-type one-hot or learned")
    sizes = shape.layers // pieces, shape.width, shape.heads, shape.patch
    return ViTPiece(shape.image_shape, shape.embedding_dim, shape.num_classes, *sizes)


def _vit_whole(shape: Shape) -> ViT:
    return ViT(shape.image_shape, shape.layers, shape.width, shape.heads, shape.patch)


NETWORKS = {"noprop": Network(_noprop_piece, _noprop_whole), "vit": Network(_vit_piece, _vit_whole)}
