"""Read checkpoints, which may come from a stranger: plain data and tensors, and a network built from them.

from models import load
net = load("checkpoints_run")
"""

import pickle
import warnings
import zipfile
from pathlib import Path

import torch

from errors import UserError, reading, require
from models.blocks import blocks_in, format_blocks
from models.build import restore
from models.classifier import Classifier
from models.image_info import ImageInfo

PROGRAM = "NoProp"
BEST = "best_model.pt"  # of a run
FORMAT = 4  # raised when older programs can no longer read a checkpoint
CONVERTIBLE = (1, 2, 3)  # by runs/convert.py


def load(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Return the network of a checkpoint, or of the best one in the folder of a run, ready to predict.

    Raises UserError for what is no checkpoint of this program, an older one, or some blocks of one only.
    """
    path = Path(path)
    path = path / BEST if (path / BEST).is_file() else path
    content = read_checkpoint(path)
    if content["format"] != FORMAT:
        raise UserError(f"{path} is of an older version: convert it with python -m runs.convert {path} NEW.pt")
    with reading(f"the checkpoint {path}", "take another one"):
        require_whole(path, content)
        network = restore(content["network"], content["model"])
        network.info = ImageInfo(**content["info"])
        network.inference = content["inference"]
    return network.to(device).eval()


def read_checkpoint(path: str | Path) -> dict:
    """Return the content of a checkpoint, tensors on the CPU. Raises UserError for anything else than one of ours."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a checkpoint in it (it has {_checkpoints_in(path)})")
    if not path.is_file():
        where = (
            f"its folder has {_checkpoints_in(path.parent, path.name)}" if path.parent.is_dir() else "nor its folder"
        )
        raise UserError(f"there is no checkpoint {path} ({where})")
    with reading(f"the checkpoint {path}", "take another one"):
        check_file(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about odd tensors, which are refused below
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # whose message is a page long
            raise ValueError("it holds other things than plain data and tensors, or calls something") from error
        _check_tensors(content, set())
    if not isinstance(content, dict) or content.get("program") != PROGRAM:
        raise UserError(f"{path} is not a checkpoint of this program")
    if type(content.get("format")) is not int or content["format"] not in (*CONVERTIBLE, FORMAT):
        raise UserError(f"{path} has checkpoint format {content.get('format')}, this program reads up to {FORMAT}")
    return content


def check_file(path: Path) -> None:
    """Raise where the file is not as torch.save writes it, or spoiled: torch.load does not look at the checksums."""
    with zipfile.ZipFile(path) as archive:
        members, size = archive.infolist(), path.stat().st_size
        require(all(0 <= member.header_offset < size for member in members), "its list of members is out of place")
        require(all(member.compress_type == zipfile.ZIP_STORED for member in members), "its members are compressed")
        require(sum(member.file_size for member in members) <= size, "its members are larger than the file")
        spoiled = archive.testzip()
        require(spoiled is None, f"its part {spoiled} is not what was written")


def _check_tensors(content: object, seen: set[int]) -> None:
    """Raise ValueError where a tensor in the content is of an odd kind, which could crash what calculates with it."""
    if isinstance(content, torch.Tensor):
        require(_is_plain(content), "a tensor in it is of an odd kind")
    elif isinstance(content, (dict, list, tuple, set)) and id(content) not in seen:
        seen.add(id(content))
        for part in content.values() if isinstance(content, dict) else content:
            _check_tensors(part, seen)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is an array in the memory of the CPU, each element in a place of its own."""
    odd = tensor.is_nested or tensor.is_complex() or tensor.is_neg()
    if odd or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    span = 1  # elements from the first to the last one of the dimensions so far
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < span:
            return tensor.numel() == 0
        span += (size - 1) * stride
    return True


def _checkpoints_in(folder: Path, name: str = BEST) -> str:
    found = sorted(folder.glob("*.pt")) or sorted(folder.glob(f"*/{name}"))  # those of --seeds and --compare are below
    return ", ".join(str(path.relative_to(folder)) for path in found) or "none"


def is_whole(checkpoint: dict) -> bool:
    """Return whether a checkpoint holds all blocks of its network."""
    config = checkpoint["config"]
    return not config.get("blocks") or len(blocks_in(checkpoint["model"])) == config["num_blocks"]


def require_whole(path: str | Path, checkpoint: dict) -> None:
    """Raise UserError for a checkpoint that holds some of the blocks only."""
    if not is_whole(checkpoint):
        held, T = blocks_in(checkpoint["model"]), checkpoint["config"]["num_blocks"]
        raise UserError(f"{path} holds blocks {format_blocks(held)} of 1-{T} only: join the parts with --merge first")
