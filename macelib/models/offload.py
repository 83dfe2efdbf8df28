"""Low memory: the parts of a pipeline wait in the machine's memory, and one at a time is on the device while it runs.

The hooks are accelerate's. A part comes when it is called, as diffusers' own offloading does it, and goes as soon as
another is called: the text encoders read one after the other, the denoiser trains without them, the VAE comes last.
"""

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn


class Alone(ModelHook):
    """Moves a part of a pipeline to the device before it runs, and the other parts away."""

    def __init__(self, device: torch.device, others: list[nn.Module]):
        self.execution_device, self.others = device, others

    def pre_forward(self, module: nn.Module, *args, **kwargs):
        for other in self.others:
            other.to("cpu")
        module.to(self.execution_device)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


def offload(pipe, device: str | torch.device):
    """The pipeline, with its parts in the machine's memory but for the one that runs.

    device: where parts run, such as "cuda". The VAE then takes one picture at a time.
    """
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    for part in parts:
        part.to("cpu")
        add_hook_to_module(part, Alone(torch.device(device), [other for other in parts if other is not part]))
    if hasattr(pipe.vae, "enable_slicing"):
        pipe.vae.enable_slicing()
    return pipe


def runs_on(module: nn.Module) -> torch.device:
    """The device that a part of a pipeline computes on, wherever its weights wait."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if device is None else torch.device(device)
