"""One pass of a denoiser on given latents, for every kind of model: noise of a level, and the call."""

import math

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from .dit import kind_of, projected
from .entrances import denoiser, part_of

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # the grid of CFIS


class Levels:
    """How noisy a latent is at timestep t of Stable Diffusion's grid, on which CFIS is stated (Eq. 5).

    A UNet has its own grid. Another noise schedule takes its timestep of equal signal-to-noise ratio. A flow,
    x = (1 − σ) x0 + σ ε, takes σ0 = √(1 − ᾱ) / (√ᾱ + √(1 − ᾱ)), which has that ratio, and then its scheduler's shift s:
    σ = s σ0 / (1 + (s − 1) σ0), unless `shift` is "none".
    """

    def __init__(self, pipe, latents: tuple[int, int], shift: str = "own"):
        """latents: (h, w), on which a dynamic shift depends."""
        config = pipe.scheduler.config
        if part_of(pipe) == "unet":
            alphas = DDPMScheduler.from_config(config).alphas_cumprod
            self.signal, self.noise = alphas.sqrt(), (1 - alphas).sqrt()  # (T,)
            self.timesteps = torch.arange(len(alphas))  # as the denoiser reads it
            return
        sd = DDPMScheduler(**SD).alphas_cumprod
        if is_flow(pipe.scheduler):
            sigma = (1 - sd).sqrt() / (sd.sqrt() + (1 - sd).sqrt())
            s = flow_shift(pipe, latents) if shift == "own" else 1.0
            self.noise = s * sigma / (1 + (s - 1) * sigma)
            self.signal, self.timesteps = 1 - self.noise, 1000 * self.noise
            return
        own = DDPMScheduler.from_config(config).alphas_cumprod
        ratio = (own / (1 - own)).log()
        self.timesteps = (ratio[None] - (sd / (1 - sd)).log()[:, None]).abs().argmin(1)
        self.signal, self.noise = own[self.timesteps].sqrt(), (1 - own[self.timesteps]).sqrt()

    def __len__(self) -> int:
        return len(self.signal)

    def noised(self, x: Tensor, noise: Tensor, t: int) -> Tensor:
        """The latent x at timestep t of the grid."""
        return self.signal[t] * x + self.noise[t] * noise


def grid_length(pipe) -> int:
    """How many timesteps the grid of CFIS has."""
    return pipe.scheduler.config.num_train_timesteps if part_of(pipe) == "unet" else 1000


def is_flow(scheduler) -> bool:
    """Whether a scheduler goes along straight paths from noise to picture."""
    flow = scheduler.config.get("prediction_type") == "flow_prediction" or scheduler.config.get("use_flow_sigmas")
    return bool(flow) or "FlowMatch" in type(scheduler).__name__


def flow_shift(pipe, latents: tuple[int, int]) -> float:
    """The shift s of a flow's scheduler for latents (h, w); a dynamic one depends on how many patches they have."""
    config = pipe.scheduler.config
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or config.get("flow_shift") or 1.0)
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    count = math.prod(latents) / patch_size(pipe) ** 2
    mu = low + (high - low) * (count - few) / (many - few)
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu


def patch_size(pipe) -> int:
    """Latent pixels on each side of what the denoiser sees as one."""
    return 2 if kind_of(pipe) == "flux" else getattr(denoiser(pipe).config, "patch_size", None) or 1


def denoise(
    model: nn.Module, x: Tensor, t: Tensor | float, e: Tensor, added: dict[str, Tensor] | None = None
) -> Tensor:
    """What the denoiser makes of noisy latents x (N, c, h, w) at t, which `Levels.timesteps` holds: one pass.

    e: (N, T, d), as the entrances read it. added: see `text.added_conditions`.
    """
    name = type(model).__name__
    if name.startswith("UNet"):
        return model(x, t, encoder_hidden_states=e, added_cond_kwargs=added, return_dict=False)[0]
    t = torch.as_tensor(t, device=x.device).expand(len(x))
    given = {"encoder_hidden_states": e, "return_dict": False}
    if name.startswith("PixArt"):
        given |= {"timestep": t, "encoder_attention_mask": added["mask"]}
        given["added_cond_kwargs"] = {key: added.get(key) for key in ("resolution", "aspect_ratio")}
    elif name.startswith("Sana"):
        given |= {"timestep": t * model.config.timestep_scale, "encoder_attention_mask": added["mask"]}
    elif name.startswith("SD3"):
        given |= {"timestep": t, "pooled_projections": added["pooled"]}
    else:
        x, given = _flux(x, given | {"timestep": t / 1000, "pooled_projections": added["pooled"]})
        given["guidance"] = added.get("guidance")
    with projected(model):
        return model(x, **given)[0]


def _flux(x: Tensor, given: dict) -> tuple[Tensor, dict]:
    """Latents (N, c, h, w) as FLUX reads them, 2 x 2 in one: (N, h/2 · w/2, 4 c), and where each stands."""
    N, c, h, w = x.shape
    packed = x.view(N, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(N, h // 2 * (w // 2), 4 * c)
    rows, columns = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).to(x)  # (h/2 · w/2, 3)
    return packed, given | {"img_ids": places, "txt_ids": places.new_zeros(given["encoder_hidden_states"].shape[1], 3)}
