"""Drawing pictures from seeds, and encoding pictures as the UNet reads them."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..errors import MaceError
from .pipelines import guidance_option
from .text import tokenizers
from .tokens import tokenize


@torch.no_grad()
def generate(
    pipe,
    prompts: str | Sequence[str],
    seeds: Sequence[int],
    steps: int = 25,
    guidance: float | None = None,
    size: int | tuple[int, int] | None = None,
    batch: int = 8,
    callback: Callable[[int, int], None] | None = None,
    **kw,
) -> list[Image.Image]:
    """One picture per (prompt, seed) pair; the noise of a picture depends on its seed alone, not on the batch.

    prompts: one for all seeds, or as many as seeds. guidance: the pipeline's own unless given. size: pixels, or
    (height, width); the model's own unless given. callback(done, total) follows each batch. kw: for the pipeline.
    MaceError: numbers of prompts and seeds that differ, a prompt that is too long.
    """
    prompts = [prompts] * len(seeds) if isinstance(prompts, str) else list(prompts)
    if len(prompts) != len(seeds):
        raise MaceError(f"There are {len(prompts)} prompts and {len(seeds)} seeds: give a seed for each picture.")
    for prompt in dict.fromkeys(prompts):
        tokenize(tokenizers(pipe)[0], prompt)  # refuses what the model would cut
    height, width = image_size(pipe, size)
    options = {"height": height, "width": width, "num_inference_steps": steps, "output_type": "pil", **kw}
    options |= guidance_option(pipe, guidance)
    images = []
    for start in range(0, len(prompts), batch):
        some = slice(start, start + batch)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[some]]
        images += pipe(prompts[some], generator=generators, **options).images
        if callback is not None:
            callback(len(images), len(prompts))
    return images


def image_size(pipe, size: int | tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) in pixels; MaceError unless both are multiples of the VAE's factor."""
    if size is None:
        own = pipe.unet.config.sample_size
        size = tuple(n * pipe.vae_scale_factor for n in (own if isinstance(own, (tuple, list)) else (own, own)))
    height, width = (size, size) if isinstance(size, int) else size
    if height % pipe.vae_scale_factor or width % pipe.vae_scale_factor:
        raise MaceError(f"The size {height}x{width} is not a multiple of {pipe.vae_scale_factor} pixels: round it.")
    return height, width


@torch.no_grad()
def encode_images(pipe, images: Sequence[Image.Image], batch: int = 8) -> Tensor:
    """Latents (n, c, h, w), float32, as the UNet reads them: the mean of the VAE's posterior, scaled."""
    vae, rows = pipe.vae, []
    config = vae.config
    upcast = getattr(config, "force_upcast", False) and vae.dtype == torch.float16  # SDXL's VAE overflows in float16
    dtype = vae.dtype
    if upcast:
        vae.to(torch.float32)
    try:
        for start in range(0, len(images), batch):
            pixels = pipe.image_processor.preprocess(list(images[start : start + batch]))  # (n, 3, H, W), -1..1
            rows.append(vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode().float())
    finally:
        if upcast:
            vae.to(dtype)
    return (torch.cat(rows) - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor
