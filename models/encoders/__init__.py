"""ENCODERS: the networks that turn an image into features, the only part of a block that sees it.

ENCODERS[name](image_shape, **options) makes a module with `out_features` and `forward(x, generator)`: normalised images
x (B, C, H, W) -> (B, out_features); the generator draws its dropout masks. Option norm=False: without batch norm at its
end, as the networks of continuous time want it. Its layers draw their start in `reset_parameters`, from the block's
stream; where it has `prepare(x)`, that is called then with training images. Prototypes, which are images too, always
take the paper's path.
"""

from models.encoders.paper import PaperCNN

ENCODERS = {"paper": PaperCNN}
