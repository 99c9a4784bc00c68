"""From settings to a model: the one place that turns flags into a network, for training and for checkpoints."""

import math
from argparse import Namespace
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from data import DataInfo, Split
from errors import UserError, reading_checkpoint
from models.adjoint import AdjointNet
from models.backprop import BackpropNet
from models.classifier import Classifier
from models.embeddings import initial_embedding, one_hot_embedding, prototype_indices
from models.NoProp_CT import NoPropNetCT
from models.NoProp_DT import NoPropNetDT
from models.NoProp_FM import NoPropNetFM
from models.schedules import make_alpha_bar
from options import learns_embedding
from parts import block_of, select_blocks
from streams import Streams


def build_model(args: Namespace, info: DataInfo, W_embed: Tensor, blocks: Iterable[int] | None = None) -> Classifier:
    """The network of the settings around W_embed (m, d), on the CPU, channels_last. blocks: see NoPropNetDT."""
    common = {"learn_embedding": learns_embedding(args), "prototype": args.embedding_type == "prototype"}
    posterior = {"class_probability": args.class_probability, "sigma": args.posterior_sigma}
    shape = info.image_shape
    try:
        if args.method == "dt":
            with torch.device("cpu"):  # its values count, also where the rest has none
                alpha_bar = make_alpha_bar(args.schedule, args.num_blocks, tuple(args.alpha_bar_clip))
            frozen = {"learn_theta_out": not args.embedding_from}
            model = NoPropNetDT(shape, W_embed, alpha_bar, blocks=blocks, eta=args.eta, **common, **posterior, **frozen)
        elif args.method == "ct":
            model = NoPropNetCT(shape, W_embed, eta=args.eta, stratified=args.stratified_time, **common, **posterior)
        elif args.method == "fm":
            model = NoPropNetFM(shape, W_embed, sigma=args.flow_sigma, stratified=args.stratified_time, **common)
        elif args.method == "backprop":
            model = BackpropNet(shape, W_embed, args.num_blocks, **common, **posterior)
        else:
            model = AdjointNet(shape, W_embed, args.steps[-1], **common)
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
) -> Classifier:
    """A model with the initial weights of its streams: those of block t depend on (seed, t) alone.

    source: the checkpoint of --embedding-from. Raises UserError where it is of other classes or images.
    """
    if source:
        model = build_model(args, info, _embedding_from(args, info, source), blocks)
        model.load_state_dict(select_blocks(source["model"], ()) | {"alpha_bar": model.alpha_bar}, strict=False)
    else:
        model = build_model(args, info, starting_embedding(args, info, train, streams), blocks)
    for index, network in model.networks.items():
        with streams.seeded("init", index):
            _reset(network)
    return model


def _embedding_from(args: Namespace, info: DataInfo, source: dict) -> Tensor:
    if source["info"]["classes"] != info.classes:
        raise UserError(f"--embedding-from {args.embedding_from} has other classes than the training images")
    if args.embedding_type == "prototype" and tuple(source["info"]["image_shape"]) != tuple(info.image_shape):
        raise UserError(f"--embedding-from {args.embedding_from} has prototypes of another size than the images")
    return source["model"]["W_embed"]


def model_from_checkpoint(
    args: Namespace, info: DataInfo, state: dict[str, Tensor], blocks: Iterable[int] | None = None
) -> Classifier:
    """The model of a checkpoint's settings with its weights. Raises UserError where they do not fit."""
    with reading_checkpoint(args.checkpoint):
        model = build_model(args, info, torch.zeros_like(state["W_embed"]), blocks)
        model.load_state_dict(state if blocks is None else select_blocks(state, blocks))
    return model


def expected_state(args: Namespace, info: DataInfo, held: Iterable[int]) -> dict[str, Tensor]:
    """Names, shapes and types of the model's state, on the meta device: takes no memory, whatever the sizes.

    held: its blocks, if it has any; one is built, and the others are as that one.
    """
    m, image_size, T = len(info.classes), math.prod(info.image_shape), args.num_blocks
    d = {"one-hot": m, "learned": args.embedding_dim, "prototype": image_size}[args.embedding_type]
    of_one = Namespace(**{**vars(args), "num_blocks": T and 1})
    with torch.device("meta"):
        state = build_model(of_one, info, torch.empty(m, d)).state_dict()
        by_block = {"alpha_bar": (T or 0) + 1, "w": T}
        state |= {name: torch.empty(by_block[name], dtype=state[name].dtype) for name in state.keys() & by_block}
    first = {name: value for name, value in state.items() if block_of(name)}
    shared = select_blocks(state, ())
    return shared | {name.replace(".0.", f".{t - 1}.", 1): value for t in held for name, value in first.items()}


def starting_embedding(args: Namespace, info: DataInfo, train: Split, streams: Streams) -> Tensor:
    """W_embed (m, d) before training, on the CPU."""
    num_classes = len(info.classes)
    if args.embedding_type == "one-hot":
        return one_hot_embedding(num_classes)
    if args.embedding_init == "prototype":
        try:
            chosen = prototype_indices(train.images, train.labels, num_classes)
        except ValueError as error:
            raise UserError(f"{error}: lower --val-fraction, raise --train-size or add images") from error
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
