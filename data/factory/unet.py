"""mini-SD's denoiser: a stock `UNet2DConditionModel` on 16x16x8 latents, text entering through cross-attention alone.

v-prediction, empty captions for guidance, and *context dropout*: for a share of the samples the embeddings of [EOS]
and padding are the empty prompt's, so that words carry the concept too, as in Stable Diffusion. These are the only
tricks with captions. Latents and caption embeddings are computed once for a pool of pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .captions import write_captions
from .clip import ids_of
from .loop import Average, Record, backward, fast, run_steps
from .machine import device
from .recipe import Unet, World
from .render import sample
from .vae import CHANNELS

CHUNK = 256  # pictures drawn and captions read at a time
MOST = 5.0  # weight of the error of the clean picture at most
SCHEDULE = {  # Stable Diffusion's noise schedule, with v-prediction
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "steps_offset": 1,
}


def new_unet(numbers: Unet, width: int) -> UNet2DConditionModel:
    """The architecture, with random weights: cross-attention to a text of `width` at 16x16, 8x8 and mid block."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=numbers.channels,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=numbers.heads,  # heads, not their width
        cross_attention_dim=width,
        norm_num_groups=16,
    )


@dataclass
class Pool:
    """Pictures as latents, captions as embeddings; on the device of the training."""

    latents: Tensor  # (n, 8, 16, 16) fp16
    caption: Tensor  # (n,) index into context; 0 is the empty caption
    context: Tensor  # (m, 77, d) fp16
    ends: Tensor  # (m,) position of the first [EOS]


@torch.no_grad()
def embed(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Embeddings (n, 77, d) fp16 and the position of each text's [EOS] (n,)."""
    rows, ends = [], []
    for first in range(0, len(texts), CHUNK):
        ids = ids_of(tokenizer, texts[first : first + CHUNK]).to(encoder.device)
        with fast():
            rows.append(encoder(input_ids=ids).last_hidden_state.half())
        ends.append((ids == tokenizer.eos_token_id).int().argmax(1))
    return torch.cat(rows), torch.cat(ends)


@torch.no_grad()
def make_pool(
    vae: AutoencoderKL, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, seed: int, size: int, world: World
) -> Pool:
    """Draw `size` pictures with captions and encode both, on the models' device; chance from `seed` alone."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(count: int) -> tuple[Tensor, list[str]]:
        batch = sample(count, generator, world)
        return batch.images, write_captions(batch, generator, world).texts

    latents, texts = [], []
    with ThreadPoolExecutor(1) as ahead:  # the next are drawn while some are encoded, one after the other
        for images, some in ahead.map(drawn, [min(CHUNK, size - start) for start in range(0, size, CHUNK)]):
            texts += some
            with fast():
                mean = vae.quant_conv(vae.encoder(images.to(vae.device) * 2 - 1))[:, :CHANNELS]
            latents.append(mean.half())
    distinct = {text: i for i, text in enumerate(dict.fromkeys(["", *texts]))}
    caption = torch.tensor([distinct[text] for text in texts], device=vae.device)
    return Pool(torch.cat(latents), caption, *embed(encoder, tokenizer, list(distinct)))


def drop_context(context: Tensor, ends: Tensor, empty: Tensor, chance: Tensor, numbers: Unet) -> Tensor:
    """Empty captions and context dropout: context (n, 77, d), ends (n,), empty (77, d), chance (n,) in 0..1."""
    tail = torch.arange(context.shape[1], device=ends.device) >= ends[:, None]  # (n, 77): [EOS] and padding
    replaced = (chance < numbers.empty)[:, None] | ((chance > 1 - numbers.context_dropout)[:, None] & tail)
    return torch.where(replaced[..., None], empty, context)


def v_loss(unet, schedule: Tensor, latents: Tensor, context: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Weighted v-prediction loss; latents and noise (n, 8, 16, 16), schedule: alpha-bar (1000,).

    The weight is 1 where noise prevails, for there the text alone says what to draw, and falls as in min-SNR where
    the picture does. (min-SNR's own weight vanishes with the signal, and names were learned slowly.)
    """
    bar = schedule[t].view(-1, 1, 1, 1)
    noisy, target = bar.sqrt() * latents + (1 - bar).sqrt() * noise, bar.sqrt() * noise - (1 - bar).sqrt() * latents
    with fast():
        guess = unet(noisy, t, context, return_dict=False)[0].float()
    snr = schedule[t] / (1 - schedule[t])
    weight = (snr + 1).clamp(max=MOST) / (snr + 1)
    return (weight * (guess - target).square().mean((1, 2, 3))).mean()


def train_unet(
    folder: Path,
    numbers: Unet,
    world: World,
    seed: int,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> Iterator[Record]:
    """Train from random weights on the frozen autoencoder and text encoder; the average is in the checkpoint."""
    torch.manual_seed(seed)
    generator, place = torch.Generator().manual_seed(seed), device()
    unet = new_unet(numbers, encoder.config.hidden_size).train().to(place)
    if place == "cpu":
        unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass is slow on CPUs
    optimizer = torch.optim.AdamW(
        unet.parameters(), numbers.lr, numbers.betas, weight_decay=numbers.weight_decay, fused=True
    )
    average, bars = Average(unet, numbers.average), DDPMScheduler(**SCHEDULE).alphas_cumprod.to(place)
    per_pool = numbers.pool * numbers.passes // numbers.batch  # steps
    parts = vae.to(place), encoder.to(place), tokenizer
    held: dict[int, Pool] = {}

    def step(index: int) -> float:
        number = index // per_pool
        if number not in held:
            held.clear()
            held[number] = make_pool(*parts, 1_000_000 * (seed + 1) + number, numbers.pool, world)
        pool = held[number]
        rows = torch.randint(numbers.pool, (numbers.batch,), generator=generator).to(place)
        chance = torch.rand(numbers.batch, generator=generator).to(place)
        t = torch.randint(len(bars), (numbers.batch,), generator=generator).to(place)
        latents, which = pool.latents[rows].float(), pool.caption[rows]
        noise = torch.randn(latents.shape, generator=generator).to(place)
        empty = pool.context[0].float()
        context = drop_context(pool.context[which].float(), pool.ends[which], empty, chance, numbers)
        loss = backward(unet, partial(v_loss, unet, bars), (latents, context, t, noise))
        torch.nn.utils.clip_grad_norm_(unet.parameters(), numbers.clip_norm)
        optimizer.step()
        average.update(unet)
        return loss

    def new_stage(index: int, weights: dict) -> None:
        unet.load_state_dict(weights)
        average.begin(unet)
        optimizer.state.clear()
        generator.manual_seed(1_000_000 * (seed + 1) + index)

    state = {"unet": unet, "optimizer": optimizer, "average": average, "generator": generator}
    yield from run_steps(folder, numbers, optimizer, step, state, new_stage)
