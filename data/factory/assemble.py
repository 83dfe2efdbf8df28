"""From finished trainings to model folders: stock Hugging Face layouts, fp16, written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from macelib.files import usual_permissions

from .recipe import Unet
from .unet import SCHEDULE, new_unet


def replace_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary folder, then put it in the place of `folder`."""
    temporary, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    usual_permissions(temporary)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def text_encoder(clip: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """mini-CLIP's text tower, as Stable Diffusion holds it, and its tokenizer."""
    return tower_of(CLIPModel.from_pretrained(clip, dtype=torch.float32)), CLIPTokenizer.from_pretrained(clip)


def tower_of(clip: CLIPModel) -> CLIPTextModel:
    """The text tower alone."""
    encoder = CLIPTextModel(clip.config.text_config)
    ours = {k.removeprefix("text_model."): v for k, v in clip.text_model.state_dict().items()}
    encoder.load_state_dict({k: ours[k.removeprefix("text_model.")] for k in encoder.state_dict()})
    return encoder.eval().requires_grad_(False)


def autoencoder(folder: Path) -> AutoencoderKL:
    """The finished autoencoder; what it is saved as does not say where it lay."""
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)
    vae.register_to_config(_name_or_path="mini-vae")
    return vae


def export_pipeline(folder: Path, weights: dict, numbers: Unet, clip: Path, vae: Path) -> None:
    """Write the whole Stable Diffusion pipeline: denoiser, text tower, autoencoder, scheduler (fp16)."""
    encoder, tokenizer = text_encoder(clip)
    unet = new_unet(numbers, encoder.config.hidden_size)
    unet.load_state_dict(weights)
    pipe = StableDiffusionPipeline(
        vae=autoencoder(vae).half(),
        text_encoder=encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=DPMSolverMultistepScheduler(
            **{k: v for k, v in SCHEDULE.items() if k != "clip_sample"}, algorithm_type="dpmsolver++", solver_order=2
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        shutil.copy(clip / name, folder / "tokenizer" / name)
