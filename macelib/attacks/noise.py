"""Noise probe (Lu et al., NeurIPS 2025, arXiv 2505.17013): DDIM with more noise than it was made for, best of 24."""

from collections.abc import Iterator
from dataclasses import dataclass

from diffusers import DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor

from ..baselines import Settings
from .registry import Run, Try, check_some, register
from .scene import Scene, in_ddim


@dataclass(frozen=True)
class Noise(Settings):
    """The paper's six η by four scales."""

    etas: tuple[float, ...] = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)  # η
    scales: tuple[float, ...] = (1.0, 1.02, 1.03, 1.04)  # of the fresh noise

    def __post_init__(self):
        super().__post_init__()
        check_some(self, etas=0, scales=0)


class NoisyDDIM(DDIMScheduler):
    """x_{t−1} = √ᾱ' x0 + √max(0, 1 − ᾱ' − σ²) ε + s σ z,  σ = η √((1 − ᾱ')/(1 − ᾱ)) √(1 − ᾱ/ᾱ'),  z ~ N(0, I).

    ᾱ' of the step before. η and s may be above 1; with η = 0 it is DDIM.
    """

    noise_eta, noise_scale = 0.0, 1.0

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, **_):
        said = super().step(model_output, timestep, sample)
        before = timestep - self.config.num_train_timesteps // self.num_inference_steps
        a = self.alphas_cumprod[timestep]
        b = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
        x0 = said.pred_original_sample
        eps = (sample - a.sqrt() * x0) / (1 - a).sqrt()
        sigma = self.noise_eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
        z = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        said.prev_sample = b.sqrt() * x0 + (1 - b - sigma**2).clamp(min=0).sqrt() * eps + self.noise_scale * sigma * z
        return said if return_dict else (said.prev_sample, x0)


def _count(settings: Noise) -> int:
    return 1 + len(settings.etas) * len(settings.scales)


@register("noise", Noise, best_of=_count, plain=lambda scene, settings: in_ddim(scene))
def noise(scene: Scene, settings: Noise) -> Run:
    """One picture for each η and scale; it succeeds where any of them shows the concept."""

    def run(attacked: Scene, prompt: str, seed: int) -> Iterator[Try]:
        pictures = []
        for eta in settings.etas:
            for scale in settings.scales:
                with in_ddim(attacked, NoisyDDIM, noise_eta=eta, noise_scale=scale):
                    pictures += attacked.draw(prompt, [seed])
        yield Try(pictures, f"best of {len(pictures)}", prompt)

    return run
