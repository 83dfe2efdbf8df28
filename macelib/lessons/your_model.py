"""Notebook 08: what an erasure needs at the shapes of a model, found without its weights, and routes out of it.

Everything is counted on PyTorch's meta device: real layers, real shapes, no memory and no arithmetic. So the numbers
are exact for the layers; what a GPU's allocator and its fused kernels make of them differs by some ten per cent.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel

from ..bench.layouts import LAYOUTS, VAE, text_config
from ..method.lora.forward import per_sample
from ..method.prior import Prior, prior
from ..method.refine import stored_rank
from ..models.entrances import kv_weights
from ..models.pipelines import _quiet as quiet
from ..show.viz import pixels


def needs(
    layout: Mapping, concepts: int = 8, rank: int = 1, images: int = 8, steps: int = 25, train: int = 50
) -> dict[str, float]:
    """What erasing takes at fp16: sizes in GB (1e9 bytes), work in TFLOP; layout: an entry of `LAYOUTS`.

    "training" is the memory of all concepts in one forward pass; "drawing" is the work of a concept's training images
    with classifier-free guidance, "steps" that of its LoRA.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**layout["unet"]).half()
        rest = [AutoencoderKL(**VAE), *(CLIPTextModel(text_config(*shape)) for shape in layout["text"])]
    W, weights = kv_weights(unet), [sum(p.numel() for p in part.parameters()) for part in (unet, *rest)]
    activations, step = _training(unet, W, rank)
    return {
        "parameters (M)": weights[0] / 1e6,
        "matrices": len(W),
        "text width": next(iter(W.values())).shape[1],
        "weights (GB)": 2 * sum(weights) / 1e9,
        "per concept in a pass (GB)": activations / 1e9,
        "training (GB)": (2 * sum(weights) + concepts * activations) / 1e9,
        "file (MB)": file_size({name: w.shape for name, w in W.items()}, concepts, rank) / 1e6,
        "UNet call (TFLOP)": (call := _call(unet)) / 1e12,
        "drawing (TFLOP)": 2 * images * steps * call / 1e12,
        "steps (TFLOP)": train * step / 1e12,
    }


def table(tflops: float, **kw) -> pd.DataFrame:
    """`needs` of every layout, a column each, and the minutes of one concept at `tflops` TFLOP per second."""
    found = {name: needs(layout, **kw) for name, layout in LAYOUTS.items()}
    for values in found.values():
        values["minutes per concept"] = (values["drawing (TFLOP)"] + values["steps (TFLOP)"]) / tflops / 60
    return pd.DataFrame(found)


def file_size(
    shapes: Mapping[str, tuple[int, int]], concepts: int, rank: int = 1, directions: Sequence[int] | None = None
) -> int:
    """Bytes of an erasure's tensors: per concept statistics and LoRA in float32, the prior's triangle in float64.

    directions: of each concept's statistics; as many as are kept at most, unless given.
    """
    out, d = sum(out for out, _ in shapes.values()), next(iter(shapes.values()))[1]
    most = stored_rank(d, [out for out, _ in shapes.values()], rank)
    statistics = sum(2 * d * k + k * (k + 1) for k in directions or [most] * concepts)
    lora = rank * (out + len(shapes) * d)
    return 4 * (statistics + concepts * lora) + 8 * d * (d + 1) // 2


def payload(path: Path) -> int:
    """Bytes of the tensors in a safetensors file: all but its header, whose length is its first eight bytes."""
    with open(path, "rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def _inputs(unet, T: int = 77) -> tuple:
    """A UNet's inputs for one picture on the meta device: latents, timestep, text, and what SDXL reads besides."""
    config, like = unet.config, {"device": "meta", "dtype": unet.dtype}
    x = torch.empty(1, config.in_channels, config.sample_size, config.sample_size, **like)
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.empty(1, pooled, **like), "time_ids": torch.empty(1, 6, **like)}
    return x, torch.zeros(1, device="meta"), torch.empty(1, T, config.cross_attention_dim, **like), added


@torch.no_grad()
def _call(unet) -> int:
    """FLOP of one call for one picture."""
    x, t, e, added = _inputs(unet)
    with FlopCounterMode(display=False) as counter:
        unet(x, t, e, added_cond_kwargs=added)
    return counter.get_total_flops()


def _training(unet, W: Mapping, rank: int) -> tuple[int, int]:
    """Bytes that one training sample keeps for its backward pass, and FLOP of both passes.

    Without the matrices (hw, hw) of self-attention, which fused kernels (PyTorch's own on CUDA) do not keep.
    """
    x, t, e, added = _inputs(unet)
    like = {"device": "meta", "requires_grad": True}
    B = {name: torch.empty(1, w.shape[0], rank, **like) for name, w in W.items()}
    D = {name: torch.empty(1, rank, w.shape[1], **like) for name, w in W.items()}
    side, S = 8 * unet.config.sample_size, [torch.zeros(2, dtype=torch.long, device="meta")]
    fixed, kept = {p.untyped_storage()._cdata for p in unet.parameters()}, {}

    def keep(tensor):
        matrix = tensor.shape[-1:] == tensor.shape[-2:-1] and tensor.shape[-1] > unet.config.sample_size
        if (storage := tensor.untyped_storage()._cdata) not in fixed and not matrix:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), per_sample(unet) as forward:
        with FlopCounterMode(display=False) as counter:
            forward(x, t, e, [torch.empty(1, side, side, device="meta")], S, B, D, added).sum().backward()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), counter.get_total_flops()


def convergence(pipe, captions: list, sizes: list[int], exclude=()) -> tuple[list[int], list[float], Prior]:
    """How far P of the first n captions is from P of all: n, ||P_n − P|| / ||P||, and the prior of all."""
    whole = prior(pipe, captions, exclude=exclude)
    sizes = [n for n in sizes if n < len(captions)]
    parts = [prior(pipe, captions[:n], exclude=exclude).P for n in sizes]
    return sizes, [float((P - whole.P).norm() / whole.P.norm()) for P in parts], whole


def convergence_said(counts: Sequence[int], away: Sequence[float]) -> str:
    """How the distance of `convergence` falls with the number of captions; "" of fewer than two numbers."""
    if len(counts) < 2:
        return ""
    power = np.polyfit(np.log(counts), np.log(away), 1)[0]
    return (
        f"From {counts[0]} to {counts[-1]} captions the distance goes from {away[0]:.2f} to {away[-1]:.2f}, like n to "
        f"the power {power:.2f} (independent captions: -0.50)."
    )


def changed(prompts: Sequence[str], before: Sequence[Image.Image], after: Sequence[Image.Image]) -> pd.DataFrame:
    """By prompt, the mean difference of two pictures' pixels, 0 to 1."""
    means = [float(abs(pixels(a) - pixels(b)).mean()) for a, b in zip(before, after, strict=True)]
    return pd.DataFrame({"mean difference of pixels": means}, index=list(prompts))


def reopened(folder: str | Path, pipe) -> dict:
    """Pipelines from what was exported into `folder`, by route, with stock diffusers and without this library.

    pipe: the original, which is written into `folder`/base. "lora": R̃ folded into the base, the fused LoRA on top;
    "standalone": one LoRA on the original, which ComfyUI and A1111 read, too.
    """
    folder, found = Path(folder), {}
    with quiet():
        pipe.save_pretrained(folder / "base")
        for route in ("pipeline", "weights", "lora", "standalone"):
            opened = DiffusionPipeline.from_pretrained(folder / ("pipeline" if route == "pipeline" else "base"))
            opened.set_progress_bar_config(disable=True)
            if route == "weights":
                opened.unet.load_state_dict(load_file(folder / "weights" / "unet.safetensors"), strict=False)
            if route == "lora":
                opened.unet.load_state_dict(load_file(folder / "lora" / "base.safetensors"), strict=False)
                opened.load_lora_weights(folder / "lora", weight_name="lora.safetensors")
            if route == "standalone":
                opened.load_lora_weights(folder / "lora", weight_name="lora_standalone.safetensors")
            found[route] = opened.to(pipe.device, pipe.unet.dtype)
    return found
