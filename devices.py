"""Where a model runs: which device the flags mean, and whether it is compiled for it."""

from argparse import Namespace

import torch

from errors import UserError
from models.classifier import Classifier


def pick_device(args: Namespace, local_rank: int = 0) -> torch.device:
    """Every rank has a GPU of its own. Raises UserError for what is not there and for flags that need CUDA."""
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and not args.no_cuda else "cpu"
    if name == "cuda" and local_rank:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is none: take auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices here; take --device cpu"
        )
    if args.offload_blocks and device.type != "cuda":
        raise UserError("--offload-blocks needs CUDA: on a CPU all blocks are in its memory anyway; leave it out")
    return device


def compile_blocks(model: Classifier) -> None:
    for network in model.networks.values():
        for part in network.children():
            part.compile()
