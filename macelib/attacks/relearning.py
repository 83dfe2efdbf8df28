"""Relearning: a LoRA is trained on a few pictures of the concept, and the erased model draws it again, or doesn't."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..baselines import Settings
from ..models.offload import runs_on
from ..models.text import encode
from .inversion import sample
from .registry import Run, Try, check_some, register
from .scene import Scene

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Relearning(Settings):
    """A curve: a row for each number of steps."""

    steps: tuple[int, ...] = (10, 25, 50, 100, 200)  # of Adam
    rank: int = 4  # r
    lr: float = 1e-4
    batch: int = 4  # latents per step

    def __post_init__(self):
        super().__post_init__()
        check_some(self, steps=1, rank=1, batch=1)


Loras = Mapping[str, tuple[Tensor, Tensor]]  # layer -> A (r, in), B (out, r)


def loras(unet: nn.Module, rank: int, generator: torch.Generator) -> Loras:
    """A ~ N(0, 1/r²) and B = 0 of every attention layer, self and cross, where the denoiser runs."""
    found, device = {}, runs_on(unet)
    for name, layer in unet.named_modules():
        if name.endswith(LAYERS) and isinstance(layer, nn.Linear):
            A = torch.randn(rank, layer.in_features, generator=generator) / rank
            B = torch.zeros(layer.out_features, rank, device=device)
            found[name] = (A.to(device).requires_grad_(True), B.requires_grad_(True))
    return found


@contextmanager
def worn(unet: nn.Module, trained: Loras) -> Iterator[None]:
    """Each layer says W x + B A x; no weight is touched, and an edit's gate on values stands behind it."""
    layers = dict(unet.named_modules())

    def lowered(forward, A, B):
        return lambda x: forward(x) + (x.float() @ A.T @ B.T).to(x.dtype)

    try:
        for name, (A, B) in trained.items():
            layers[name].forward = lowered(layers[name].forward, A, B)
        yield
    finally:
        for name in trained:
            layers[name].__dict__.pop("forward", None)


@register("relearning", Relearning, pictures=True)
def relearning(scene: Scene, settings: Relearning) -> Run:
    """A LoRA for each prompt and seed, trained with the prompt on the pictures by `Scene.loss`."""

    def run(attacked: Scene, prompt: str, seed: int) -> Iterator[Try]:
        generator = torch.Generator().manual_seed(seed)
        trained = loras(attacked.pipe.unet, settings.rank, generator)
        weights = [w for pair in trained.values() for w in pair]
        optimizer = torch.optim.Adam(weights, lr=settings.lr)
        e = encode(attacked.pipe, [prompt])[0]
        with worn(attacked.pipe.unet, trained):
            for step in range(1, max(settings.steps) + 1):
                x, noise, t = sample(attacked, settings.batch, generator)
                loss = attacked.loss(prompt, e, x, noise, t)
                for w, gradient in zip(weights, attacked.gradient(loss, weights, len(x)), strict=True):
                    w.grad = gradient
                optimizer.step()
                if step in settings.steps:
                    yield Try(attacked.draw(prompt, [seed]), f"{step} steps", prompt, f"LoRA of rank {settings.rank}")

    return run
