"""Write a network as a file that needs nothing of this program: ONNX, or a program of torch.export.

It takes uint8 images (N, C, H, W) of any N and returns class probabilities (N, m), by one run without noise.
Example: with open("model.onnx", "wb") as file: export(load("best_model.pt"), file, ".onnx", steps=20)
"""

import json
import warnings
from typing import BinaryIO

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from errors import UserError
from models.classifier import Classifier
from models.folding import fold_constants

SUFFIXES = (".onnx", ".pt2")
ONE_RUN_READOUTS = ("sample", "mean", "ensemble")  # of one run the first two are the same
MOST_CALLS = 50  # calls of the network: each is written out, with all its operations
ONNX_BYTES = 2 * 10**9  # one file holds no more


class Answer(nn.Module):
    """Images (N, C, H, W) uint8 -> class probabilities (N, m), by one run without noise.

    Args:
        net: its `info` is set.
        readout: ensemble: the mean of the blocks' own u_hat; else p(y | z) at the end.
        mirror: whether the answers to an image and to its mirror image are averaged.
        how: arguments of net.infer.
    """

    def __init__(self, net: Classifier, readout: str = "mean", mirror: bool = False, **how):
        super().__init__()
        self.net, self.readout, self.mirror, self.how = net, readout, mirror, {**how, "stochastic": False}

    def forward(self, images: Tensor) -> Tensor:
        if self.mirror:
            images = torch.cat([images, images.flip(3)])
        x = self.net.see(images.permute(0, 2, 3, 1))
        _, *path = self.net.infer(x, **self.how)
        if self.readout == "ensemble":
            p = torch.stack([path[step][1][0] for step in self.net.answering(**self.how)]).mean(dim=0)
        else:
            p = self.net.answer(*path[-1])[0]
        return p.unflatten(0, (2, -1)).mean(dim=0) if self.mirror else p


def any_number() -> tuple[dict]:
    """Return the shape of the images as torch.export wants it: their number is not fixed."""
    return ({0: Dim("N")},)


def trace(module: nn.Module, images: Tensor) -> ExportedProgram:
    """Return a module as a program of torch.export for any number of images; the given ones are examples."""
    return torch.export.export(module, (images,), dynamic_shapes=any_number(), strict=False)


@torch.no_grad()
def export(net: Classifier, file: BinaryIO, suffix: str, readout: str = "mean", mirror: bool = False, **how) -> None:
    """Write a network on the CPU as a file of one of SUFFIXES; the arguments are those of Answer.

    The names of the classes stand in it as JSON: in ONNX's metadata_props "classes", of .pt2 in the extra file
    "classes.json". Raises UserError where packages of ONNX are missing, or a model is too large for it.
    """
    if suffix == ".onnx":
        _require_onnx(net)
    answer, classes = Answer(net, readout, mirror, **how).eval(), json.dumps(net.info.classes)
    images = torch.zeros(2, *net.info.image_shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and onnxscript, about their own parts
        answer(images)  # what is computed once and kept, such as the statistics, is no part of the program
        folded = fold_constants(trace(answer, images).module())
        if suffix == ".onnx":
            file.write(_onnx(folded, images, classes))
        else:
            torch.export.save(trace(folded, images), file, extra_files={"classes.json": classes})


def _require_onnx(net: Classifier) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("a file .onnx needs the packages onnx and onnxscript: pip install onnx onnxscript") from error
    if sum(value.nbytes for value in net.state_dict().values()) > ONNX_BYTES:
        raise UserError("the model has more than 2 GB, which a file .onnx cannot hold: export to .pt2")


def _onnx(module: nn.Module, images: Tensor, classes: str) -> bytes:
    """Return a module as the bytes of an ONNX file with named input, output and dimension."""
    names = {"input_names": ["images"], "output_names": ["probabilities"], "dynamic_shapes": any_number()}
    model = torch.onnx.export(module, (images,), dynamo=True, verbose=False, **names).model_proto
    model.metadata_props.add(key="classes", value=classes)
    return model.SerializeToString()
