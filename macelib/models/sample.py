"""Drawing pictures from seeds, and encoding pictures as the UNet reads them."""

import inspect
import math
import numbers
from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from ..errors import MaceError
from .denoise import patch_size
from .entrances import denoiser, part_of
from .finite import check_finite, not_finite
from .forwards import sparing
from .offload import runs_on
from .pipelines import guidance_option
from .text import check_prompt, encode

BINNED = (32, 64, 128, 256)  # sizes of latents for which a pipeline has a list of sizes


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
    MaceError: numbers of prompts and seeds that differ, a prompt that is too long, what `check_drawing` refuses, a
    picture that is NaN.
    """
    prompts = [prompts] * len(seeds) if isinstance(prompts, str) else list(prompts)
    if len(prompts) != len(seeds):
        raise MaceError(f"There are {len(prompts)} prompts and {len(seeds)} seeds: give a seed for each picture.")
    check_drawing(pipe, seeds, steps, guidance, batch)
    for prompt in dict.fromkeys(prompts):
        check_prompt(pipe, prompt)  # refuses what the model would cut
    height, width = image_size(pipe, size)
    options = {"height": height, "width": width, "num_inference_steps": steps, **kw}
    options |= guidance_option(pipe, guidance) | _unbinned(pipe)
    images = []
    for start in range(0, len(prompts), batch):
        some = slice(start, start + batch)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[some]]
        images += _drawn(pipe, prompts[some], generator=generators, **options)
        if callback is not None:
            callback(len(images), len(prompts))
    return images


def ddim(pipe, kind: type = DDIMScheduler):
    """DDIM, or a scheduler of its kind, on the pipeline's own noise schedule; the pipeline keeps its own.

    Latents are not pixels, so that x0 is not clipped. A step goes back by T // n timesteps, whatever the next one is:
    where the own spacing is "linspace", whose steps are longer, it is "trailing" here, else the denoiser would be told
    another timestep than that of x_t. The last ᾱ is 1 or ᾱ_0, as the own scheduler has it.
    """
    own = pipe.scheduler.config
    spacing = own.get("timestep_spacing", "leading")
    one = own.get("set_alpha_to_one", own.get("final_sigmas_type") != "sigma_min")
    options = {"timestep_spacing": "trailing" if spacing == "linspace" else spacing, "set_alpha_to_one": one}
    return kind.from_config(own, clip_sample=False, **options)


def check_drawing(pipe, seeds: Sequence[int], steps: int, guidance: float | None = None, batch: int = 1) -> None:
    """MaceError for seeds outside 0 .. 2^63 - 1, for more steps than the scheduler has, for a guidance without end."""
    for seed in seeds:
        if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise MaceError(f"The seed {seed!r} cannot be used; allowed: whole numbers from 0 to 2^63 - 1.")
    scheduler = pipe.scheduler.config
    leading = getattr(scheduler, "timestep_spacing", None) == "leading"  # then the offset is added to every timestep
    most = scheduler.num_train_timesteps - (getattr(scheduler, "steps_offset", 0) if leading else 0)
    if not (isinstance(steps, numbers.Integral) and 1 <= steps <= most):
        raise MaceError(f"steps is {steps!r}; allowed: 1 to {most}, the timesteps of the scheduler.")
    if guidance is not None and not math.isfinite(guidance):
        raise MaceError(f"guidance is {guidance!r}; allowed: a finite number.")
    if batch < 1:
        raise MaceError(f"batch is {batch!r}; allowed: 1 or more.")


def _drawn(pipe, prompts: list[str], **options) -> list[Image.Image]:
    """The pictures of one batch; MaceError names the prompt of one that is NaN, and where that comes from."""
    last = []
    hook = denoiser(pipe).register_forward_hook(lambda _, args, output: last.__setitem__(slice(None), [output[0]]))
    try:
        with sparing(pipe):
            pixels = pipe(prompts, output_type="np", **options).images  # (n, height, width, 3) in 0..1
    finally:
        hook.remove()
    for prompt, finite in zip(prompts, np.isfinite(pixels).all((1, 2, 3)), strict=True):
        if not finite:
            what = f"The picture of {prompt!r}"
            encode(pipe, [prompt])  # says so where the text is NaN already
            check_finite(pipe, part_of(pipe), what, last[0])
            raise not_finite(pipe, "vae", what)
    return pipe.image_processor.numpy_to_pil(pixels)


def _unbinned(pipe) -> dict[str, bool]:
    """PixArt and Sana draw at the nearest of their sizes, where they are of a size that has some."""
    bins = "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters
    return {"use_resolution_binning": False} if bins and denoiser(pipe).config.sample_size not in BINNED else {}


def image_size(pipe, size: int | tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) in pixels; MaceError unless both are multiples of the VAE's factor, and of the patches."""
    if size is None:
        own = getattr(denoiser(pipe).config, "sample_size", None) or pipe.default_sample_size
        size = tuple(n * pipe.vae_scale_factor for n in (own if isinstance(own, (tuple, list)) else (own, own)))
    height, width = (size, size) if isinstance(size, int) else size
    factor = pipe.vae_scale_factor * patch_size(pipe)
    if height % factor or width % factor:
        raise MaceError(f"The size {height}x{width} is not a multiple of {factor} pixels: round it.")
    return height, width


def encode_images(pipe, images: Sequence[Image.Image], batch: int = 8) -> Tensor:
    """Latents (n, c, h, w), float32, as the UNet reads them: the mean of the VAE's posterior, scaled."""
    return posterior(pipe, images, batch)[0]


@torch.no_grad()
def posterior(pipe, images: Sequence[Image.Image], batch: int = 8) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's posterior, scaled as the UNet reads it: (n, c, h, w) each, float32."""
    vae, means, deviations = pipe.vae, [], []
    config = vae.config
    upcast = getattr(config, "force_upcast", False) and vae.dtype == torch.float16  # SDXL's VAE overflows in float16
    dtype = vae.dtype
    if upcast:
        vae.to(torch.float32)
    try:
        for start in range(0, len(images), batch):
            pixels = pipe.image_processor.preprocess(list(images[start : start + batch]))  # (n, 3, H, W), -1..1
            found = vae.encode(pixels.to(runs_on(vae), vae.dtype))
            if hasattr(found, "latent"):  # Sana's autoencoder has no posterior
                means.append(found.latent.float())
                deviations.append(torch.zeros_like(means[-1]))
            else:
                means.append(found.latent_dist.mode().float())
                deviations.append(found.latent_dist.std.float())
            check_finite(pipe, "vae", "What the VAE reads in a picture", means[-1])
    finally:
        if upcast:
            vae.to(dtype)
    shift = getattr(config, "shift_factor", None) or 0.0
    return (torch.cat(means) - shift) * config.scaling_factor, torch.cat(deviations) * config.scaling_factor
