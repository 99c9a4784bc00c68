"""The networks and the mathematics of NoProp, to import: torch only, no flags, no progress bars."""

from models.adjoint import AdjointNet
from models.backprop import BackpropNet
from models.checkpoint import load
from models.diffusion_blocks import DiffusionBlocksNet
from models.image_info import ImageInfo
from models.methods import METHODS
from models.NoProp_CT import NoPropNetCT
from models.NoProp_DT import NoPropNetDT
from models.NoProp_FM import NoPropNetFM
from models.NoPropBlock import NoPropBlock
from models.schedules import SCHEDULES

__all__ = ["METHODS", "SCHEDULES", "AdjointNet", "BackpropNet", "DiffusionBlocksNet", "ImageInfo", "NoPropBlock"]
__all__ += ["NoPropNetCT", "NoPropNetDT", "NoPropNetFM", "load"]
