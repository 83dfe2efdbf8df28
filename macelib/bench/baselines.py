"""Time of the other methods' closed forms at the size of a real model, the text encoder's passes apart."""

import time

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from ..baselines import build
from ..concepts import Concept
from ..models.entrances import kv_weights
from ..models.tiny import tiny_pipeline
from .layouts import LAYOUTS, check_layout

CLOSED = ("uce", "rece", "speed", "oce", "dp")


def closed_forms(concepts: int = 100, layout: str = "SD v1.4", progress=None) -> list[str]:
    """A line for each method: seconds for so many concepts, beside as many names to keep, as published for celebrities.

    MaceError: see `check_layout`.
    """
    pipe, tell, lines = text_layers(layout), progress or (lambda *_: None), []
    width, layers = pipe.unet.config.cross_attention_dim, len(kv_weights(pipe.unet)) // 2
    erased = [Concept(f"ship {i}", "sea", "celebrity") for i in range(concepts)]
    begun, spent = [0.0], [0.0]
    hooks = [
        pipe.text_encoder.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter())),
        pipe.text_encoder.register_forward_hook(lambda *_: spent.append(time.perf_counter() - begun[-1])),
    ]
    for i, name in enumerate(CLOSED):
        before, start = sum(spent), time.perf_counter()
        build(pipe, erased, name, task="celebrity", kept=[f"dog {i}" for i in range(concepts)])
        whole, text = time.perf_counter() - start, sum(spent) - before
        lines.append(
            f"{name}, {concepts} concepts, d = {width}, {layers} layers: {whole - text:.2f} s, and {text:.2f} s to "
            "read the text"
        )
        tell("closed forms", i + 1, len(CLOSED), name)
    for hook in hooks:
        hook.remove()
    return lines


def text_layers(layout: str) -> StableDiffusionPipeline:
    """A small pipeline with the denoiser of a real model, of whose weights those alone are there that read the text.

    They are random, and it cannot draw. MaceError: see `check_layout`.
    """
    check_layout(layout)
    sizes, g = LAYOUTS[layout]["unet"], torch.Generator().manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sizes)
    for name, w in kv_weights(unet).items():
        random = torch.randn(w.shape, generator=g, device="cpu") / w.shape[1] ** 0.5
        unet.get_submodule(name).weight = torch.nn.Parameter(random)
    pipe = tiny_pipeline("sd", width=sizes["cross_attention_dim"])
    pipe.unet = unet
    return pipe
