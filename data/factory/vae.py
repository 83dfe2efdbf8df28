"""mini-SD's autoencoder: a stock `AutoencoderKL`, 64 px to 16x16x8, trained as a nearly deterministic autoencoder.

The loss is L1 plus half an L1 on the image's differences (edges), with a fixed latent noise and a small weight on the
latents' size in place of a KL term. At the end the channels are whitened: their mean and scale are folded into the
1x1 `quant_conv` and `post_quant_conv`, so that the result is a stock model with `scaling_factor` 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .loop import Average, Record, fast, run_steps
from .machine import device
from .recipe import Vae, World
from .render import sample

CHANNELS = 8  # latent channels
LOG_VARIANCE = -8.0  # of the shipped encoder's posterior: sampling it changes next to nothing


def new_vae() -> AutoencoderKL:
    """The architecture, with random weights."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 96),
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """L1 plus half the L1 of horizontal and vertical differences; x, y (N, 3, H, W)."""
    dx = (x.diff(dim=3) - y.diff(dim=3)).abs().mean()
    dy = (x.diff(dim=2) - y.diff(dim=2)).abs().mean()
    return (x - y).abs().mean() + 0.5 * (dx + dy)


def psnr(x: Tensor, y: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB; x, y (N, 3, H, W) in -1..1."""
    mse = ((x - y).clamp(-2, 2) / 2).square().flatten(1).mean(1)
    return float((-10 * mse.clamp_min(1e-10).log10()).mean())


def train_vae(folder: Path, numbers: Vae, world: World, seed: int) -> Iterator[Record]:
    """Train on the world's pictures; the average of the weights is in the checkpoint."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = new_vae().train().to(device())
    optimizer = torch.optim.AdamW(vae.parameters(), numbers.lr, numbers.betas, weight_decay=numbers.weight_decay)
    average = Average(vae, numbers.average)

    def step(_: int) -> float:
        x = sample(numbers.batch, generator, world).images.to(device()) * 2 - 1  # (N, 3, 64, 64)
        with fast():
            z = vae.quant_conv(vae.encoder(x))[:, :CHANNELS].float()  # (N, 8, 16, 16): the posterior's mean
            noisy = z + numbers.noise * torch.randn(z.shape, generator=generator).to(z.device)
            y = vae.decoder(vae.post_quant_conv(noisy)).float()
        loss = reconstruction_loss(x, y) + 1e-3 * z.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), numbers.clip_norm)
        optimizer.step()
        average.update(vae)
        return loss.item()

    parts = {"vae": vae, "optimizer": optimizer, "average": average, "generator": generator}
    yield from run_steps(folder, numbers, optimizer, step, parts)


def export_vae(folder: Path, weights: dict, numbers: Vae, world: World) -> None:
    """Whiten the averaged autoencoder over the world's pictures and write it (fp16)."""
    vae = new_vae().eval()
    vae.load_state_dict(weights)
    generator = torch.Generator().manual_seed(7)
    pictures = [sample(250, generator, world).images for _ in range(-(-numbers.whitened_over // 250))]
    whiten(vae, torch.cat(pictures)[: numbers.whitened_over] * 2 - 1)
    vae.half().save_pretrained(folder)


@torch.no_grad()
def whiten(vae: AutoencoderKL, x: Tensor) -> None:
    """Fold the latents' per-channel mean and scale over x (N, 3, 64, 64) in -1..1 into the two 1x1 convolutions."""
    z = torch.cat([vae.quant_conv(vae.encoder(part))[:, :CHANNELS] for part in x.split(64)])
    mean, scale = z.mean((0, 2, 3)), z.std((0, 2, 3))  # (8,)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:CHANNELS] /= scale[:, None, None, None]
    into.bias[:CHANNELS] = (into.bias[:CHANNELS] - mean) / scale
    into.weight[CHANNELS:] = 0
    into.bias[CHANNELS:] = LOG_VARIANCE
    # post(z) with z = scale * w + mean, in terms of the whitened w
    out.bias += F.conv2d(mean.view(1, -1, 1, 1), out.weight).flatten()
    out.weight *= scale[None, :, None, None]
