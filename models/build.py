"""Networks from plain values: new ones with the weights of their random streams, and those of a checkpoint."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from errors import require
from models.blocks import blocks_in, select_blocks, without_block
from models.classifier import Classifier
from models.embeddings import initial_embedding, one_hot_embedding, prototype_indices
from models.encoders import make_encoder
from models.image_info import ImageInfo
from models.methods import METHODS
from models.random_streams import Streams


def build(method: str, W_embed: Tensor, frozen_encoder: str | None = None, **arguments) -> Classifier:
    """Return a method's network around W_embed (m, d), in channels_last memory; arguments are those of its class.

    frozen_encoder: name of an encoder that all blocks share and none trains.
    """
    encoder = make_encoder(frozen_encoder, arguments["image_shape"]) if frozen_encoder else None
    if encoder:
        arguments["encoder"] = f"features:{encoder.out_features}"
    network = METHODS[method].network(W_embed=W_embed, **arguments)
    if encoder:
        network.encoder = encoder.requires_grad_(False).eval()
    return network.to(memory_format=torch.channels_last)


def draw_weights(network: Classifier, streams: Streams, make_x: Callable[[], Tensor] | None = None) -> None:
    """Draw the starting weights; those of block t depend on (seed, t) alone.

    make_x: gives training images (B, C, H, W), for encoders that want to see some before they are trained.
    """
    for index, part in network.networks.items():
        _draw(part, streams, "init", index, make_x)
    if network.encoder:
        _draw(network.encoder, streams, "init-encoder", 0, make_x)


def _draw(part: nn.Module, streams: Streams, name: str, index: int, make_x: Callable[[], Tensor] | None) -> None:
    with streams.seeded(name, index):
        _reset(part)
        for module in part.modules():
            if make_x and hasattr(module, "prepare"):
                module.prepare(make_x())


def load_encoder(network: Classifier, state: dict[str, Tensor]) -> list[str]:
    """Load weights into the encoder of every block, or the frozen one; returns names of a last layer, passed over.

    Raises ValueError where they are not those of the encoder.
    """
    blocks = [part.image_path for part in network.networks.values()]
    encoders = [network.encoder] if network.encoder else blocks
    whole = encoders[0].state_dict()
    names = {name.removeprefix("net."): name for name in whole}
    own = {short: whole[name] for short, name in names.items()}
    given = {name.removeprefix("module.").removeprefix("net."): value for name, value in state.items()}
    parts = {name.split(".")[0] for name in own}
    passed, missing = sorted(given.keys() - own.keys()), sorted(own.keys() - given.keys())
    strange = [name for name in passed if name.split(".")[0] in parts]
    require(not missing, f"it lacks {''.join(missing[:1])}")
    require(not strange, f"it has {''.join(strange[:1])}, which the encoder has not")
    for name, value in own.items():
        shapes = ("x".join(map(str, getattr(each, "shape", ()))) for each in (given[name], value))
        same = isinstance(given[name], Tensor) and given[name].shape == value.shape
        require(same, "its {} is {}, that of the encoder {} (other --image-size, or colours?)".format(name, *shapes))
        require(given[name].isfinite().all(), f"its {name} is not finite")
    for encoder in encoders:
        encoder.load_state_dict({name: given[short] for short, name in names.items()})
    return passed


def load_what_fits(network: Classifier, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Load from another network's state what is trained here and has the same name and shape there.

    Returns the names of what was loaded, and of what was not. What is fixed by settings (one-hot W_embed, alpha_bar)
    stays. Raises ValueError where nothing in a block or encoder fits, whichever blocks this network holds.
    """
    own, parts = network.state_dict(), {*network.networks.values(), network.encoder}
    inside = tuple(f"{name}." for name, module in network.named_modules() if module in parts)
    learned = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    wanted = [name for name in own if name in learned or name.startswith(inside)]
    shapes = {(without_block(name), value.shape) for name, value in own.items() if name.startswith(inside)}
    fits = any((without_block(name), value.shape) in shapes for name, value in state.items())
    require(fits, "nothing of its blocks has name and shape of what is here")
    taken = [name for name in wanted if name in state and state[name].shape == own[name].shape]
    network.load_state_dict({name: state[name] for name in taken}, strict=False)
    return taken, [name for name in wanted if name not in taken]


def _reset(module: nn.Module) -> None:
    """Draw the weights of a module anew; one with `reset_parameters` does so for all that it holds."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    else:
        for child in module.children():
            _reset(child)


def starting_embedding(
    kind: str, init: str, dim: int, images: Tensor, labels: Tensor, info: ImageInfo, streams: Streams
) -> Tensor:
    """Return W_embed (m, d) before training, on the CPU.

    kind: one-hot, learned (of d = dim) or prototype (of the images' size); init: see initial_embedding, or prototype.
    images (N, H, W, C) uint8 and labels (N,) of the training. Raises ValueError for a class without an image.
    """
    m, size = len(info.classes), images[0].numel()
    if kind == "one-hot":
        return one_hot_embedding(m)
    if init == "prototype":
        chosen = prototype_indices(images, labels, m)
        return info.normalise(images[chosen]).flatten(1).cpu()  # (m, C*H*W)
    return initial_embedding(m, size if kind == "prototype" else dim, init, streams.fresh("embedding", device="cpu"))


def restore(description: dict, state: dict[str, Tensor], blocks: Iterable[int] | None = None) -> Classifier:
    """Return the network of a checkpoint; of its blocks those asked for.

    description: {"method", "arguments"} of `build`. Raises ValueError where the weights are not what it asks for.
    """
    method, arguments = description["method"], description["arguments"]
    require(method in METHODS, f"its method {method!r} is none of {', '.join(METHODS)}")
    if blocks is not None:
        state, arguments = select_blocks(state, blocks), {**arguments, "blocks": blocks}
    held = arguments.get("blocks") or arguments.get("num_blocks")
    count = len(blocks_in(state))
    require(held is None or count == (held if type(held) is int else len(held)), f"it does not hold its {held} blocks")
    W_embed = state["W_embed"]
    with torch.device("meta"):  # takes no memory, whatever the sizes
        expected = build(method, torch.empty(W_embed.shape), **arguments).state_dict()
    check_weights(state, expected)
    if "alpha_bar" in state:
        levels = state["alpha_bar"]
        require(levels[0] > 0 and levels[-1] < 1 and (levels.diff() > 0).all(), "its alpha_bar does not rise in (0, 1)")
    network = build(method, torch.zeros_like(W_embed), **arguments)
    network.load_state_dict(dict(state))  # without the notes of torch, which are not checked
    return network


def check_weights(state: dict, expected: dict[str, Tensor]) -> None:
    """Raise ValueError where names, shapes, types or values of a state are not those of a network."""
    missing, more = sorted(expected.keys() - state.keys()), sorted(map(str, state.keys() - expected.keys()))
    require(not missing, f"it lacks the weights {''.join(missing[:1])}")
    require(not more, f"it has weights {''.join(more[:1])} that its settings do not ask for")
    for name, value in expected.items():
        check_tensor(name, state[name], value)


def check_tensor(name: str, value: object, expected: Tensor) -> None:
    """Raise ValueError where a value is no tensor of the expected shape and type, or not finite."""
    require(isinstance(value, Tensor), f"its {name} is no tensor")
    fits = value.shape == expected.shape and value.dtype == expected.dtype
    require(fits, f"its {name} is {_describe(value)}, its settings ask for {_describe(expected)}")
    require(value.isfinite().all(), f"its {name} has values that are not finite")


def _describe(value: Tensor) -> str:
    return f"{'x'.join(map(str, value.shape)) or 'a number'} of {str(value.dtype).removeprefix('torch.')}"
