"""Any image encoder of timm, by its name: image (B, C, H, W) -> features (B, F)."""

from difflib import get_close_matches

import torch
from torch import Tensor, nn


class TimmEncoder(nn.Module):
    """A network of timm without its last layer and without dropout, whose masks would come from no stream of ours.

    Args:
        image_shape: (C, H, W).
        norm: has no effect: its norms see the image only, never z or t.
        name: as timm knows it, such as resnet18 or vit_tiny_patch16_224.

    Raises ValueError where timm is not installed, knows no such network, or it cannot take such images.
    """

    def __init__(self, image_shape: tuple[int, int, int], norm: bool = True, name: str = ""):
        super().__init__()
        self.image_shape, self.name = tuple(image_shape), name
        self.net = self.make()
        self.out_features = self._features_of_an_image()

    def make(self, pretrained: bool = False) -> nn.Module:
        """Return a new network; pretrained: with the weights that timm downloads."""
        try:
            import timm
        except ImportError as error:
            raise ValueError(f"encoder timm:{self.name} needs timm: pip install timm") from error
        if not timm.is_model(self.name):
            near = ", ".join(get_close_matches(self.name.lower(), timm.list_models(), cutoff=0.0))
            raise ValueError(f"timm knows no encoder {self.name}; names like it: {near} (all: timm.list_models())")
        arguments = {"pretrained": pretrained, "num_classes": 0, "in_chans": self.image_shape[0]}
        try:
            net = timm.create_model(self.name, img_size=self.image_shape[1:], **arguments)
        except TypeError:  # a convolutional one takes any size
            net = timm.create_model(self.name, **arguments)
        for module in net.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        return net

    def _features_of_an_image(self) -> int:
        training = self.net.training
        try:
            with torch.no_grad():
                parameter = next(self.net.parameters())
                return self.net.eval()(torch.zeros(1, *self.image_shape, device=parameter.device)).shape[1]
        except (RuntimeError, AssertionError) as error:
            shape = "x".join(map(str, self.image_shape))
            raise ValueError(
                f"encoder timm:{self.name} cannot take images {shape}: give the --image-size that it is made for"
            ) from error
        finally:
            self.net.train(training)

    def reset_parameters(self) -> None:
        """Draw the start as timm does."""
        self.net.load_state_dict(self.make().state_dict())

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return features: x (B, C, H, W) -> (B, F). There is no dropout."""
        return self.net(x)
