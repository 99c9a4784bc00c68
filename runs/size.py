"""Estimate what a training will take: parameters, memory and checkpoints, told and weighed before it is there."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from errors import UserError, printable
from hardware.memory import bytes_of, memory_limit, memory_now
from models.build import build
from models.classifier import Classifier
from models.image_info import ImageInfo, images_at_a_time
from models.methods import METHODS
from runs.report import count_parameters, parameters_of
from settings import Settings

FLOAT = 4  # bytes of a weight
LATER = {"cpu": 100 * 2**20, "cuda": 500 * 2**20}  # bytes of code that draws pictures, among others; CUDA's context
MOST = 0.85  # of the memory; the system and other programs take some
FEW_IMAGES = 300  # of a validation split: the best of several epochs is chosen by chance
MOST_CLASSES = 10  # that are told one by one


@dataclass(frozen=True)
class Size:
    """Parameters of the whole network; bytes of last.pt, of memory on the device, and the limit of that memory."""

    parameters: int
    checkpoint: int
    memory: int
    limit: int | None
    device: torch.device


def expected_size(
    s: Settings, info: ImageInfo, held: Iterable[int] | None, device: torch.device, ranks: int = 1
) -> Size:
    """Return what a training will take; nothing large is made. Raises UserError where the memory is too small.

    held: the blocks of this process, where a method has blocks that learn alone; where not, ranks share the batches.
    """
    image_shape = info.image_shape
    model = _without_weights(s, image_shape, len(info.classes), held)
    whole, here = parameters_of(s, model)["parameters"], count_parameters(model)
    frozen = count_parameters(model.encoder) if model.encoder else 0  # without moments
    chooses = s.val_fraction > 0 and not s.blocks  # so that the weights of the best epoch are kept, on the CPU
    kept = 3 + (chooses and device.type == "cpu")  # beside weights and both moments of Adam
    on_device = here
    if s.offload_blocks:
        on_device -= sum(map(count_parameters, model.networks.values())) - count_parameters(_one(model))
    renewed = FLOAT * here if kept == 4 else 0  # the best weights are there twice for a moment
    shares = ranks > 1 and not METHODS[s.method].blocks_alone
    part = -(-s.batch_size // ranks) if shares else s.batch_size
    step = _bytes_of_step(s, model, image_shape, part) + FLOAT * here * shares  # gradients on their way to others
    passing = max(renewed, step, _bytes_of_evaluation(s, model, image_shape))
    memory = memory_now(device) + LATER[device.type] + FLOAT * (kept * on_device - 2 * frozen) + passing
    checkpoint = FLOAT * ((3 + chooses) * (here if s.blocks else whole) - 2 * frozen)
    size = Size(whole, checkpoint, memory, memory_limit(device), device)
    if size.limit and memory > MOST * size.limit:
        raise UserError(
            f"a network of {whole / 1e6:,.0f} M parameters for images {'x'.join(map(str, image_shape))} does not fit: "
            f"{_memory(size)}; lower --image-size, or --num-blocks or --batch-size"
        )
    return size


def _without_weights(
    s: Settings, image_shape: Sequence[int], num_classes: int, held: Iterable[int] | None
) -> Classifier:
    """Return the network on device meta, where it takes no memory."""
    arguments = s.describe_network(image_shape)["arguments"] | ({"blocks": held} if held is not None else {})
    dims = {"learned": s.embedding_dim, "one-hot": num_classes, "prototype": math.prod(image_shape)}
    try:
        with torch.device("meta"):
            model = build(s.method, torch.empty(num_classes, dims[s.embedding_type]), **arguments)
    except ValueError as error:
        raise UserError(str(error)) from error
    return model


def _one(model: Classifier) -> nn.Module:
    return next(iter(model.networks.values()))


def _paths(s: Settings, block: nn.Module, image_shape: Sequence[int], images: int, copies: int) -> list[Tensor]:
    """Return the features of images, and of prototypes, which are images too; next to these all else is small.

    copies: noised embeddings of each image at a time.
    """
    x = torch.empty(images, *image_shape, device="meta").to(memory_format=torch.channels_last)
    z = torch.empty(images * copies, math.prod(image_shape), device="meta")
    if hasattr(block, "embedding_dim"):  # images pass through all of it
        z = torch.empty(images * copies, block.embedding_dim, device="meta")
        return [block(z, x, torch.empty(images * copies, device="meta"))]
    paths = {"image_path": x, **({"label_path": z} if s.embedding_type == "prototype" else {})}
    return [getattr(block, name)(images) for name, images in paths.items() if hasattr(block, name)]


def _bytes_of_step(s: Settings, model: Classifier, image_shape: Sequence[int], images: int) -> int:
    """Return the most bytes of activations and gradients in a step of training on so many images."""
    together = [_one(model)] if METHODS[s.method].blocks_alone else model.networks.values()

    def step() -> None:
        features = [each for block in together for each in _paths(s, block, image_shape, images, s.noise_levels or 1)]
        learned = [each.flatten() for each in features if each.requires_grad]
        if learned:
            torch.cat(learned).sum().backward()

    model.train()
    return bytes_of(step)


@torch.no_grad()
def _bytes_of_evaluation(s: Settings, model: Classifier, image_shape: Sequence[int]) -> int:
    """Return the most bytes of activations in an evaluation; a part of the blocks is not evaluated."""
    if s.blocks:
        return 0
    model.eval()
    images = s.eval_batch_size or images_at_a_time(*image_shape[1:])
    copies = s.eval_runs if model.runs_together else 1
    return bytes_of(lambda: _paths(s, _one(model), image_shape, images, copies))


def describe_size(size: Size) -> str:
    """Return one line, and another where the memory may get scarce."""
    saved = f"last.pt up to {_in_words(size.checkpoint)}"
    scarce = size.limit and size.memory > size.limit / 2
    warning = "\nthat is more than half of the memory: lower --image-size or --num-blocks if other work needs it"
    return f"{size.parameters / 1e6:,.2f} M parameters in all; {_memory(size)}, {saved}{warning if scarce else ''}"


def _memory(size: Size) -> str:
    limit = f" of the {_in_words(size.limit)}" if size.limit else ""
    where = "on the GPU" if size.device.type == "cuda" else "in memory"
    return f"it will take about {_in_words(size.memory)}{limit} {where}"


def _in_words(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def describe_classes(labels: Tensor, classes: Sequence[str]) -> str:
    """Return the classes with their numbers of training images; of many the smallest and the largest."""
    counts = Counter(labels.tolist())
    told = [(name if len(name) <= 30 else f"{name[:27]}...", counts[y]) for y, name in enumerate(classes)]
    if len(told) <= MOST_CLASSES:
        return printable("training images by class: " + ", ".join(f"{name} {count}" for name, count in told))
    least, most = (choose(told, key=lambda pair: pair[1]) for choose in (min, max))
    ends = f"from {least[1]} ({least[0]}) to {most[1]} ({most[0]})"
    return printable(f"training images in each of {len(told)} classes: {ends}")


def describe_choice(images: int) -> str:
    """Return one line on a best epoch that is chosen on few validation images."""
    error = 100 * math.sqrt(0.9 * 0.1 / images)
    return (
        f"the best epoch is chosen on {images} validation images only: an accuracy of 90 % is then 90 +- {error:.1f} %"
    )
