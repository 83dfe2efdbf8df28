"""SLD: safe latent diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105, Eq. 3-8)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .hooks import Hook, Run
from .negative import joined_state
from .registry import Request, Settings, register

FULL = 50  # steps of the denoising that the warm-up is counted in


@dataclass(frozen=True)
class SLD(Settings):
    """The paper's medium strength, SLD-M."""

    warmup: float = 10.0  # steps of 50 without guidance away from the concepts
    scale: float = 1000.0  # s_S
    threshold: float = 0.01  # δ, in units of ε
    momentum: float = 0.3  # s_m
    beta: float = 0.4  # β, how slowly the momentum follows


WEAK = SLD(warmup=15.0, scale=200.0, threshold=0.0, momentum=0.0, beta=0.0)
STRONG = SLD(warmup=7.0, scale=2000.0, threshold=0.025, momentum=0.5, beta=0.7)
MAX = SLD(warmup=0.0, scale=5000.0, threshold=1.0, momentum=0.5, beta=0.7)
# These warm-ups take 0, 1 and 2 of 8 steps.
GRID = {"warmup": (0.0, 5.0, 10.0), "scale": (1000.0, 2000.0, 5000.0), "threshold": (0.01, 0.025, 1.0)}


def safety_step(eps_u: Tensor, eps_p: Tensor, eps_s: Tensor, nu: Tensor, s: SLD, active: bool) -> tuple[Tensor, Tensor]:
    """The conditional prediction ε_p − [active] γ, which guidance turns into ε̂, and the next momentum ν.

        μ = min(s_S |ε_p − ε_S|, 1) where (ε_p − ε_S) < δ, else 0         (element-wise)
        γ = μ (ε_S − ε_u) + s_m ν,   ν' = β ν + (1 − β) γ,   ε̂ = ε_u + s_g ((ε_p − ε_u) − γ)

    All (n, c, h, w); active: the warm-up is over (ν follows during it, too).
    """
    gap = eps_p - eps_s
    mu = torch.where(gap < s.threshold, (s.scale * gap.abs()).clamp(max=1.0), 0.0)
    gamma = mu * (eps_s - eps_u) + s.momentum * nu
    return eps_p - gamma if active else eps_p, s.beta * nu + (1 - s.beta) * gamma


@dataclass(frozen=True, eq=False)
class SafeGuidance(Hook):
    """Guidance away from the concepts: a third pass of the denoiser at each step."""

    e: Tensor  # E(S) (T, d), S the names joined by ", "
    warmup: float
    scale: float
    threshold: float
    momentum: float
    beta: float

    def eps(self, run: Run, t: int, eps_u: Tensor, eps_p: Tensor, predict) -> tuple[Tensor, Tensor]:
        s = SLD(self.warmup, self.scale, self.threshold, self.momentum, self.beta)
        nu = run.memory.get("nu", torch.zeros_like(eps_p))
        active = run.step >= self.warmup * run.steps / FULL
        eps_p, run.memory["nu"] = safety_step(eps_u, eps_p, predict(self.e), nu, s, active)
        return eps_u, eps_p


@register("sld", SLD, published={"weak": WEAK, "strong": STRONG, "max": MAX}, grid=GRID)
def sld(request: Request, settings: SLD) -> SafeGuidance:
    """Names beyond the model's tokens are cut; without classifier-free guidance nothing happens."""
    return SafeGuidance(joined_state(request), **vars(settings))
