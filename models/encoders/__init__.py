"""ENCODERS: the networks that turn an image into features, the only part of a block that sees it.

ENCODERS[name](image_shape, **options) makes a module with `out_features` and `forward(x, generator)`: normalised images
x (B, C, H, W) -> (B, out_features); the generator draws its dropout masks. Option norm=False: without batch norm at its
end, as the networks of continuous time want it of the paper's; the others keep theirs. Its layers draw their start in
`reset_parameters`, from the block's stream; where it has `prepare(x)`, that is called then with training images. A
module with `reset_parameters` draws all that it holds.
Prototypes, which are images too, always take the paper's path.
"""

from torch import Tensor, nn

from models.encoders.airbench import Airbench
from models.encoders.from_timm import TimmEncoder
from models.encoders.paper import PaperCNN
from models.encoders.resnet18 import ResNet18

ENCODERS = {"paper": PaperCNN, "airbench": Airbench, "resnet18": ResNet18}
OPTIONS = {"airbench": "width"}  # what a number after the colon of a name means


class Precomputed(nn.Module):
    """Stands where an encoder would, in blocks that are given the features of a frozen one."""

    def __init__(self, out_features: int):
        super().__init__()
        self.out_features = out_features

    def forward(self, x: Tensor, generator=None) -> Tensor:
        return x


def is_encoder(name: str) -> bool:
    """Return whether a name is one of ENCODERS, or timm:NAME."""
    return name in ENCODERS or (name.startswith("timm:") and name != "timm:")


def make_encoder(encoder: str, image_shape: tuple[int, int, int], norm: bool = True) -> nn.Module:
    """Return an encoder by its name: one of ENCODERS, airbench:WIDTH, timm:NAME or features:NUMBER (Precomputed).

    Raises KeyError for other names, ValueError for images that it cannot take.
    """
    name, _, option = encoder.partition(":")
    if name == "timm" and option:
        return TimmEncoder(image_shape, norm=norm, name=option)
    if name == "features" and option:
        return Precomputed(int(option))
    return ENCODERS[name](image_shape, norm=norm, **({OPTIONS[name]: int(option)} if option else {}))
