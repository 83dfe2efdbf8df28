"""Drawing pictures from seeds, and the training images of a concept with a manifest of what made them."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .concepts import Concept, sample_prompt
from .errors import MaceError
from .files import atomic, hash_tensors
from .pipelines import cast, default_guidance, drawing_hash, guidance_option, kv_weights, model_hash
from .text import tokenizers
from .tokens import tokenize

log = logging.getLogger(__name__)


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


def training_images(
    pipe,
    concept: Concept,
    n: int = 8,
    folder: str | Path = ".",
    seed: int = 0,
    steps: int = 25,
    guidance: float | None = None,
    size: int | tuple[int, int] | None = None,
    batch: int = 8,
    prompt: str | None = None,
    model: str | None = None,
    autocast: str | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw n pictures of a concept into a folder, with manifest.json: prompt, seed, model hash and settings of each.

    The manifest is written after each batch; a call that was cut short goes on; pictures made otherwise are redone.
    Picture i has seed `seed + i`. prompt: the concept's sample prompt unless given. model: `model_hash`, if known.
    autocast: "bf16" or "fp16", None: as loaded.
    Returns the folder. MaceError where it cannot be written.
    """
    folder, prompt = Path(folder), prompt or sample_prompt(concept)
    made_by = {"model": model or model_hash(pipe), "drawn_by": drawing_hash(pipe), "steps": steps}
    made_by |= {"scheduler": type(pipe.scheduler).__name__, "autocast": autocast}
    guidance = default_guidance(pipe) if guidance is None else guidance
    made_by |= {"guidance": guidance, "size": list(image_size(pipe, size))}
    if hasattr(pipe.unet, "_macelib_originals"):
        made_by["erased"] = hash_tensors(kv_weights(pipe.unet))
    wanted = [{"file": f"{i:04d}.png", "prompt": prompt, "seed": seed + i, **made_by} for i in range(n)]
    kept = {entry["file"]: entry for entry in read_manifest(folder)}
    fresh = [e for e in wanted if kept.get(e["file"]) == e and _readable(folder / e["file"])]
    if kept and len(fresh) < min(len(kept), n):
        log.warning("%s holds pictures of other settings, or damaged ones: they are drawn again.", folder)
    missing = [entry for entry in wanted if entry not in fresh]
    _write_manifest(folder, fresh)  # nothing vouches for what is drawn again, until it is there
    for start in range(0, len(missing), batch):
        some = missing[start : start + batch]
        seeds = [entry["seed"] for entry in some]
        with cast(pipe, autocast):
            images = generate(pipe, prompt, seeds, steps, guidance, size, batch)
        for entry, image in zip(some, images, strict=True):
            with atomic(folder / entry["file"]) as temporary:
                image.save(temporary)
        fresh += some
        _write_manifest(folder, sorted(fresh, key=lambda entry: entry["file"]))
        if callback is not None:
            callback(len(fresh), n)
    return folder


def read_images(folder: str | Path) -> tuple[list[Image.Image], list[dict]]:
    """The pictures of a folder and their entries of manifest.json, in its order; MaceError where there are none."""
    entries = read_manifest(Path(folder))
    if not entries:
        raise MaceError(f"{folder} holds no manifest.json with pictures: make them with training_images.")
    return [Image.open(Path(folder) / entry["file"]).convert("RGB") for entry in entries], entries


def read_manifest(folder: Path) -> list[dict]:
    """Entries of manifest.json; none where it is missing or damaged."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["images"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write_manifest(folder: Path, entries: list[dict]) -> None:
    with atomic(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps({"images": entries}, indent=1, ensure_ascii=False), encoding="utf-8")


def _readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):
        return False
    return True
