"""From settings to a model: the one place that turns flags into a network, for training and for checkpoints."""

from argparse import Namespace
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from data import DataInfo, Split
from errors import UserError
from models.embeddings import initial_embedding, one_hot_embedding, prototype_indices
from models.NoProp_DT import NoPropNetDT
from models.schedules import make_alpha_bar
from options import learns_embedding
from parts import select_blocks
from streams import Streams


def build_model(args: Namespace, info: DataInfo, W_embed: Tensor, blocks: Iterable[int] | None = None) -> NoPropNetDT:
    """The network of the settings around W_embed (m, d) with these blocks (default: all), on the CPU, channels_last."""
    alpha_bar = make_alpha_bar(args.schedule, args.num_blocks, tuple(args.alpha_bar_clip))
    try:
        model = NoPropNetDT(
            info.image_shape,
            W_embed,
            alpha_bar,
            learn_embedding=learns_embedding(args),
            learn_theta_out=not args.embedding_from,
            blocks=blocks,
            prototype=args.embedding_type == "prototype",
            eta=args.eta,
            class_probability=args.class_probability,
            sigma=args.posterior_sigma,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return model.to(memory_format=torch.channels_last)


def new_model(
    args: Namespace,
    info: DataInfo,
    train: Split,
    streams: Streams,
    blocks: Iterable[int] | None = None,
    source: dict | None = None,
) -> NoPropNetDT:
    """A model with the initial weights of its streams: those of block t depend on (seed, t) alone.

    source: the checkpoint of --embedding-from. Raises UserError where it is of other classes or images.
    """
    if source:
        model = build_model(args, info, _embedding_from(args, info, source), blocks)
        model.load_state_dict(select_blocks(source["model"], ()) | {"alpha_bar": model.alpha_bar}, strict=False)
    else:
        model = build_model(args, info, starting_embedding(args, info, train, streams), blocks)
    for t in model.held:
        with streams.seeded("init", t):
            _reset(model.block(t))
    return model


def _embedding_from(args: Namespace, info: DataInfo, source: dict) -> Tensor:
    if source["info"]["classes"] != info.classes:
        raise UserError(f"--embedding-from {args.embedding_from} has other classes than the training images")
    if args.embedding_type == "prototype" and tuple(source["info"]["image_shape"]) != tuple(info.image_shape):
        raise UserError(f"--embedding-from {args.embedding_from} has prototypes of another size than the images")
    return source["model"]["W_embed"]


def model_from_checkpoint(
    args: Namespace, info: DataInfo, state: dict[str, Tensor], blocks: Iterable[int] | None = None
) -> NoPropNetDT:
    """The model of a checkpoint's settings with its weights. Raises UserError where they do not fit."""
    try:
        model = build_model(args, info, torch.zeros_like(state["W_embed"]), blocks)
        model.load_state_dict(select_blocks(state, model.held))
    except (KeyError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"the weights in {args.checkpoint} do not fit its own settings: the file is damaged, take another one"
        ) from error
    return model


def starting_embedding(args: Namespace, info: DataInfo, train: Split, streams: Streams) -> Tensor:
    """W_embed (m, d) before training, on the CPU."""
    num_classes = len(info.classes)
    if args.embedding_type == "one-hot":
        return one_hot_embedding(num_classes)
    if args.embedding_init == "prototype":
        try:
            chosen = prototype_indices(train.images, train.labels, num_classes)
        except ValueError as error:
            raise UserError(f"{error}: lower --val-fraction or add images") from error
        return info.normalise(train.images[chosen]).flatten(1).cpu()  # (m, C*H*W)
    channels, height, width = info.image_shape
    prototype = args.embedding_type == "prototype"
    dim = channels * height * width if prototype else args.embedding_dim
    generator = streams.fresh("embedding", device="cpu")
    return initial_embedding(num_classes, dim, args.embedding_init, generator)


def _reset(module: nn.Module) -> None:
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
