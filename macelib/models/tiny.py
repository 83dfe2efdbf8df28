"""Small pipelines with random weights in the layouts of Stable Diffusion 1, 2 and XL, for tests and demonstrations.

Every part is the stock class of diffusers and transformers: what holds for them holds for the large ones.
"""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..errors import MaceError
from ..templates import SAMPLE_TEMPLATE, TEMPLATES

KINDS = ("sd", "sd2", "sdxl")
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = "ship sea frog grass horse field dog cat person man woman art painting red green blue big small on by with"
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WIDTH = 32  # of a text encoder, unless given
PROJECTED = 16  # width of SDXL's pooled text embedding


def tiny_pipeline(
    kind: str = "sd", seed: int = 0, length: int = 77, width: int = WIDTH, channels: int = 4
) -> DiffusionPipeline:
    """A random pipeline on the CPU of 64-pixel images, VAE factor 4, latents 16x16, text width 32 (64 for sdxl).

    kind: "sd" (1.x), "sd2" (v-prediction, linear projections, padding with "!") or "sdxl" (two encoders, pooled text,
    time ids). length: tokens per prompt. width: of each text encoder; with 768 an "sd" is of the family SD 1.x, with
    384 and 8 channels (of the latents) of mini-SD's. The same seed gives the same weights; the global random state is
    left alone.
    """
    if kind not in KINDS:
        raise MaceError(f"There is no tiny pipeline {kind!r}: choose from {', '.join(KINDS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = _sdxl(length, width) if kind == "sdxl" else _sd(kind, length, width, channels)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sd(kind: str, length: int, width: int, channels: int) -> StableDiffusionPipeline:
    v2 = kind == "sd2"
    tokenizer = tiny_tokenizer(length, pad="!" if v2 else END)
    return StableDiffusionPipeline(
        vae=tiny_vae(0.18215, channels),
        text_encoder=CLIPTextModel(_text_config(tokenizer, "gelu" if v2 else "quick_gelu", width)),
        tokenizer=tokenizer,
        unet=_unet(width, linear=v2, heads=(1, 2, 4) if v2 else 2, channels=channels),
        scheduler=DDIMScheduler(
            **NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
            prediction_type="v_prediction" if v2 else "epsilon",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _sdxl(length: int, width: int) -> StableDiffusionXLPipeline:
    first, second = tiny_tokenizer(length), tiny_tokenizer(length, pad="!")
    return StableDiffusionXLPipeline(
        vae=tiny_vae(0.13025),
        text_encoder=CLIPTextModel(_text_config(first, "quick_gelu", width)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(second, "gelu", width)),
        tokenizer=first,
        tokenizer_2=second,
        unet=_unet(2 * width, linear=True, heads=(1, 2, 4), xl=True),
        scheduler=EulerDiscreteScheduler(**NOISE, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _unet(
    text: int, linear: bool, heads: int | tuple[int, ...], xl: bool = False, channels: int = 4
) -> UNet2DConditionModel:
    down = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    extra = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + PROJECTED,  # six time ids, pooled text
    }
    return UNet2DConditionModel(**{
        "sample_size": 16,
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": text,
        "attention_head_dim": heads,  # heads, not their width
        "use_linear_projection": linear,
        **(extra if xl else {}),
    })  # fmt: skip


def tiny_vae(scaling: float, channels: int = 4, shift: float | None = None) -> AutoencoderKL:
    """An autoencoder of 64 x 64 pictures with random weights; scaling, shift: of its latents."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=64,
        scaling_factor=scaling,
        shift_factor=shift,
    )


def _text_config(tokenizer: CLIPTokenizer, act: str, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act=act,
        projection_dim=PROJECTED,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def tiny_tokenizer(length: int = 77, pad: str = END) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE) that knows the templates' words and few more; others fall into letters."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]  # CLIP's byte alphabet
    merges: dict[tuple[str, str], None] = {}
    text = " ".join([*SAMPLE_TEMPLATE.values(), WORDS, *(t for kind in ("object", "style") for t in TEMPLATES[kind])])
    for word in dict.fromkeys(w for w in text.lower().split() if w.isascii() and w.isalpha()):
        for i in range(1, len(word)):
            merges[word[:i], word[i] + ("</w>" if i == len(word) - 1 else "")] = None
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), START, END]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    special = {"unk_token": END, "bos_token": START, "eos_token": END, "pad_token": pad}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=length, **special)
