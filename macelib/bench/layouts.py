"""The layouts of real models, for those who have no weights at hand, and pipelines of random weights in them."""

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..errors import MaceError
from ..models.tiny import NOISE

_V2 = {"use_linear_projection": True}
LAYOUTS: dict[str, dict] = {  # unet: fields of UNet2DConditionModel; text: width, layers, heads of each encoder
    "SD v1.4": {
        "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        "text": [(768, 12, 12)],
    },
    "SD v2.1": {
        "unet": {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), **_V2},
        "text": [(1024, 23, 16)],
    },
    "SDXL": {
        "unet": {
            "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), **_V2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "text": [(768, 12, 12), (1280, 32, 20)],
    },
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def text_config(width: int, layers: int, heads: int) -> CLIPTextConfig:
    """A CLIP text encoder of this size with CLIP's vocabulary."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return CLIPTextConfig(vocab_size=49408, num_attention_heads=heads, projection_dim=width, **sizes)


def check_layout(layout: str) -> None:
    """MaceError for a layout that is not known, or has several text encoders."""
    known = [name for name, parts in LAYOUTS.items() if len(parts["text"]) == 1]
    if layout not in known:
        raise MaceError(f"There is no layout {layout!r} to fill with random weights; choose from {', '.join(known)}.")


def random_pipeline(layout: str, tokenizer: CLIPTokenizer, seed: int = 0) -> StableDiffusionPipeline:
    """A pipeline of the size and the layers of a real model of one text encoder, with random weights in fp32.

    It draws noise, in the time and the memory of the real one (SD v1.4: 4 GB). tokenizer: any of CLIP's kind, with at
    most CLIP's vocabulary. MaceError: see `check_layout`.
    """
    check_layout(layout)
    parts: Mapping = LAYOUTS[layout]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionPipeline(
            vae=AutoencoderKL(**VAE, sample_size=8 * parts["unet"]["sample_size"], scaling_factor=0.18215),
            text_encoder=CLIPTextModel(text_config(*parts["text"][0])),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(**parts["unet"]),
            scheduler=DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
