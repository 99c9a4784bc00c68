"""Starting weights that come from files: those of an encoder, and those of another run's model."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from errors import READING_ERRORS, UserError, printable, reading, require
from models.blocks import block_of, blocks_in, format_blocks, without_block
from models.build import load_encoder, load_what_fits, restore
from models.classifier import Classifier
from models.encoders import make_encoder
from runs.checkpoint import load_checkpoint
from settings import Settings

MOST_NAMES = 6  # that a line holds


def take_weights_of_files(s: Settings, model: Classifier) -> None:
    """Let a new model start from --encoder-weights or --init-from, if given, and print what was taken."""
    if s.encoder_weights:
        _load_encoder(s, model)
    if s.init_from:
        _load_model(s.init_from, model)


def _load_model(path: str, model: Classifier) -> None:
    """Load what fits of another run's model. Raises UserError where nothing does."""
    source = load_checkpoint(path)
    with reading(f"the checkpoint {path}", "take another one", errors=(ValueError,)):
        restore(source["network"], source["model"])  # its weights are as its settings say
    state = source["model"]
    try:
        taken, left = load_what_fits(model, state)
    except ValueError as error:
        method = source["config"]["method"]
        raise UserError(
            f"--init-from {path} is of --method {method}: {error}; take a run of a like network, or leave it out"
        ) from error
    names = source["info"]["classes"], model.info.classes
    classes = len(names[0]), len(names[1])
    note = "; its classes have other names: what it learned of them is taken too" if _renamed(*names) else ""
    which = f"{len(taken)} of {len(taken) + len(left)}" if left else f"all {len(taken)}"
    print(printable(f"{which} tensors start as in {path}{_why_not(left, model, state, classes)}{note}"))


def _renamed(classes: list[str], others: list[str]) -> bool:
    return len(classes) == len(others) and classes != others


def _why_not(left: list[str], model: Classifier, state: dict[str, Tensor], classes: tuple[int, int]) -> str:
    """Return in words why tensors of a model start anew; classes: how many the other model has, and this one."""
    own, reasons = model.state_dict(), {"other classes": [], "other sizes": [], "not in it": []}
    for name in left:
        if name not in state:
            reasons["not in it"].append(name)
            continue
        as_here = [classes[1] if size == classes[0] else size for size in state[name].shape]
        reasons["other classes" if as_here == list(own[name].shape) else "other sizes"].append(name)
    groups = [f"{why}: {_in_words(names, blocks_in(state))}" for why, names in reasons.items() if names]
    return "".join(f"; anew, since {group}" for group in groups)


def _in_words(names: list[str], known: list[int]) -> str:
    """Return the modules that hold tensors, each once for all blocks; known: blocks of which there is anything."""
    new = {block_of(name) for name in names} - {None, *known}
    rest = [without_block(name) for name in names if block_of(name) not in new]
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in rest))
    words = [*([f"blocks {format_blocks(new)}"] if new else []), *modules[:MOST_NAMES]]
    return ", ".join(words) + (f" and {len(modules) - MOST_NAMES} more" if len(modules) > MOST_NAMES else "")


def _load_encoder(s: Settings, model: Classifier) -> None:
    """Load the weights of --encoder-weights. Raises UserError where they are not those of the encoder."""
    if s.encoder_weights == "pretrained":
        state = _pretrained_weights(s.encoder_spec, model.info.image_shape)
    else:
        state = _weights_of_file(s.encoder_weights)
    try:
        passed = load_encoder(model, state)
    except ValueError as error:
        which = f"--encoder {s.encoder_spec}" if s.network != "vit" else "this transformer"
        raise UserError(f"{s.encoder_weights} is not for {which}: {error}") from error
    print(printable(f"the encoder starts from {s.encoder_weights}; passed over: {', '.join(passed) or 'nothing'}"))


def _weights_of_file(path: str) -> dict:
    """Return the state dict that a file holds. Raises UserError where it holds none."""
    if not os.path.isfile(path):
        raise UserError(f"--encoder-weights {path}: there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        require(isinstance(content, dict), "no dict")
    except READING_ERRORS as error:
        raise UserError(
            f"--encoder-weights {path} holds no weights by name: save them by torch.save(encoder.state_dict(), PATH)"
        ) from error
    return content.get("state_dict", content)


def _pretrained_weights(encoder: str, image_shape: Sequence[int]) -> dict:
    """Return the weights that timm downloads. Raises UserError where that fails."""
    try:
        return make_encoder(encoder, image_shape).make(pretrained=True).state_dict()
    except Exception as error:  # whatever a download can raise
        raise UserError(
            f"timm could not download weights for {encoder} ({type(error).__name__}): is there a network? Else give a "
            "file, --encoder-weights PATH"
        ) from error
