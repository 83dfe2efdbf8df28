"""NaN and infinity, named where they appear: which part of the pipeline gave them, of what, and why."""

import torch
from torch import Tensor

from ..errors import MaceError

PARTS = {"unet": "denoiser", "transformer": "denoiser", "vae": "VAE"}  # any other: a text encoder


def check_finite(pipe, part: str, what: str, result: Tensor) -> None:
    """MaceError where what a part of the pipeline gave holds NaN or infinity; what: of what it is."""
    if not bool(torch.isfinite(result).all()):
        raise not_finite(pipe, part, what)


def not_finite(pipe, part: str, what: str) -> MaceError:
    """The error itself: the weights are damaged, or the precision is too small for what they compute."""
    module, named = getattr(pipe, part), PARTS.get(part, "text encoder")
    if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
        return MaceError(f"{what} is NaN: the weights of the {named} hold NaN or infinity; load the model again.")
    device = module.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else module.dtype
    name = str(precision).removeprefix("torch.")
    cure = "load the model in float32, without autocast" if name != "float32" else "lower the guidance or the strength"
    return MaceError(f"{what} is NaN: the {named} overflows in {name}; {cure}.")
