"""ENCODERS: the networks that turn an image into features, the only part of a block that sees it.

ENCODERS[name](image_shape, **options) makes a module with `out_features` and `forward(x, generator)`: normalised images
x (B, C, H, W) -> (B, out_features); the generator draws its dropout masks. Option norm=False: without batch norm at its
end, as the networks of continuous time want it. Where it has `prepare(x)`, that is called once with training images.
"""

from models.encoders.paper import PaperCNN

ENCODERS = {"paper": PaperCNN}
