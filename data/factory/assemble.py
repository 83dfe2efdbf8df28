"""From finished trainings to the folders in `data/`: stock Hugging Face layouts, fp16, written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from macelib.files import data_folder, usual_permissions

from .cards import write_card
from .clip import export_clip, save_clip
from .judge import export_judge
from .loop import averaged
from .render import sample
from .unet import SCHEDULE, new_unet
from .vae import new_vae, whiten
from .widen import WIDTH, widened, widened_unet


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


def finished_clip() -> Path:
    """Export mini-CLIP to `data/mini-clip`."""
    return replace_folder(data_folder() / "mini-clip", lambda f: (export_clip(f), write_card(f, "clip")))


def narrow_clip() -> tuple[CLIPModel, CLIPTokenizer]:
    """mini-CLIP as `train clip` leaves it; ValueError where it is wide already."""
    folder = data_folder() / "mini-clip"
    clip = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    if clip.config.text_config.hidden_size >= WIDTH:
        raise ValueError(f"{folder} is wide already: `train clip` and `export clip` write one that can be widened")
    return clip, CLIPTokenizer.from_pretrained(folder)


def finished_widen() -> Path:
    """Widen mini-CLIP's text tower and mini-SD, where there is one: it comes first, so that a kill loses nothing."""
    wide, sd = widened(*narrow_clip(), averaged("widen")), data_folder() / "mini-sd"
    if sd.exists():
        unet = new_unet()
        before = UNet2DConditionModel.from_pretrained(sd / "unet", torch_dtype=torch.float32)
        unet.load_state_dict(widened_unet(before.state_dict()))

        def write(folder: Path) -> None:
            shutil.copytree(sd, folder, dirs_exist_ok=True)
            tower_of(wide).half().save_pretrained(folder / "text_encoder")
            unet.half().save_pretrained(folder / "unet")
            write_card(folder, "sd")

        replace_folder(sd, write)
    tokenizer = narrow_clip()[1]  # the other one was used, and would keep its padding in its file
    return replace_folder(data_folder() / "mini-clip", lambda f: (save_clip(wide, tokenizer, f), write_card(f, "clip")))


def finished_judge() -> Path:
    """Export mini-judge to `data/mini-judge`."""
    return replace_folder(data_folder() / "mini-judge", lambda f: (export_judge(f), write_card(f, "judge")))


def finished_vae() -> Path:
    """Whiten the trained autoencoder over 2,000 pictures and write it to `data/mini-vae`, where mini-SD takes it."""
    vae = new_vae().eval()
    vae.load_state_dict(averaged("vae"))
    generator = torch.Generator().manual_seed(7)
    whiten(vae, torch.cat([sample(250, generator).images for _ in range(8)]) * 2 - 1)
    vae.half()
    return replace_folder(data_folder() / "mini-vae", lambda f: (vae.save_pretrained(f), write_card(f, "vae")))


def text_encoder() -> tuple[CLIPTextModel, CLIPTokenizer]:
    """mini-CLIP's text tower, as Stable Diffusion holds it, and its tokenizer."""
    folder = data_folder() / "mini-clip"
    return tower_of(CLIPModel.from_pretrained(folder, dtype=torch.float32)), CLIPTokenizer.from_pretrained(folder)


def tower_of(clip: CLIPModel) -> CLIPTextModel:
    """The text tower alone."""
    encoder = CLIPTextModel(clip.config.text_config)
    ours = {k.removeprefix("text_model."): v for k, v in clip.text_model.state_dict().items()}
    encoder.load_state_dict({k: ours[k.removeprefix("text_model.")] for k in encoder.state_dict()})
    return encoder.eval()


def trained_vae() -> AutoencoderKL:
    """The finished autoencoder; what it is saved as does not say where it lay."""
    vae = AutoencoderKL.from_pretrained(data_folder() / "mini-vae", torch_dtype=torch.float32).eval()
    vae.register_to_config(_name_or_path="mini-vae")
    return vae


def finished_unet() -> Path:
    """Assemble the whole pipeline in `data/mini-sd`."""
    encoder, tokenizer = text_encoder()
    unet = new_unet(encoder.config.hidden_size)
    unet.load_state_dict(averaged("unet"))
    pipe = StableDiffusionPipeline(
        vae=trained_vae().half(),
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

    def write(folder: Path) -> None:
        pipe.save_pretrained(folder)
        write_card(folder, "sd")
        for name in ("vocab.json", "merges.txt", "tokenizer.json"):
            shutil.copy(data_folder() / "mini-clip" / name, folder / "tokenizer" / name)

    return replace_folder(data_folder() / "mini-sd", write)
