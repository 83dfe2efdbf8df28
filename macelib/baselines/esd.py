"""ESD: the concept's guidance is trained away (Gandikota et al., ICCV 2023, arXiv 2303.07345, Eq. 7)."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..models.entrances import kv_names
from ..models.sample import ddim
from ..models.text import encode
from .changes import WeightDelta, parameters
from .hooks import check_text, noise_scale
from .registry import Request, Settings, register


@dataclass(frozen=True)
class ESD(Settings):
    """The paper's ESD-x; `CODE_2025` are the defaults of the authors' later code."""

    positive = ("lr", "steps", "batch", "denoising")
    variant: Literal["x", "u", "strict"] = "x"  # cross-attention; all but it; its keys and values alone
    eta: float = 1.0  # η, strength of the negative guidance
    lr: float = 1e-5  # of Adam
    steps: int = 1000  # optimiser steps, one concept drawn at random in each
    batch: int = 1  # noises per step
    guidance: float = 3.0  # of the partial denoising that x_t comes from
    denoising: int = 50  # its steps


@dataclass(frozen=True)
class ESDU(ESD):
    """The paper's ESD-u, for objects and explicit content."""

    variant: Literal["x", "u", "strict"] = "u"  # as ESD's


CODE_2025 = ESD(eta=2.0, lr=5e-5, steps=200)
GRID = {"eta": (1.0, 2.0), "lr": (1e-5, 1e-4, 1e-3), "steps": (100, 200)}


@dataclass(frozen=True)
class Step:
    """What a training step did."""

    step: int  # from 1
    loss: float
    timestep: int  # 0-999
    concept: str


def trained(unet: torch.nn.Module, variant: Literal["x", "u", "strict"]) -> dict[str, torch.nn.Parameter]:
    """The weights that a variant trains, by name."""
    kv = tuple(f"{name}." for name in kv_names(unet))
    chosen = {
        "x": lambda name: ".attn2." in name,
        "u": lambda name: ".attn2." not in name,
        "strict": lambda name: name.startswith(kv),
    }[variant]
    return {name: p for name, p in parameters(unet).items() if chosen(name)}


def esd_target(eps_c: Tensor, eps_0: Tensor, eta: float) -> Tensor:
    """ε*(x, "") − η (ε*(x, c) − ε*(x, "")), what ε_θ(x, c) is trained towards; in ε."""
    return eps_0 - eta * (eps_c - eps_0)


def train(request: Request, settings: ESD, student) -> Iterator[Step]:
    """Train `student`, a copy of the pipeline's UNet, step by step: min ‖ε_θ(x_t, c, t) − target‖²  (Eq. 7).

    x_t comes from noise, denoised by the student with guidance 3 to a random one of 50 steps.
    """
    pipe, teacher = request.pipe, request.pipe.unet
    generator = torch.Generator().manual_seed(request.seed)
    scheduler = ddim(pipe)
    scheduler.set_timesteps(settings.denoising)
    e = encode(pipe, ["", *(concept.name for concept in request.concepts)])  # (1 + n, T, d)
    weights = list(trained(student, settings.variant).values())
    student.requires_grad_(False)
    for w in weights:
        w.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=settings.lr)
    shape = (settings.batch, teacher.config.in_channels, *_size(teacher))
    for step in range(1, settings.steps + 1):
        i = int(torch.randint(len(request.concepts), (), generator=generator))
        stop = int(torch.randint(settings.denoising, (), generator=generator))
        x = torch.randn(shape, generator=generator).to(e)
        pair = e[0].expand(len(x), -1, -1), e[1 + i].expand(len(x), -1, -1)
        x, t = _denoised(student, scheduler, x, pair, stop, settings.guidance)
        with torch.no_grad():
            eps_0, eps_c = (_eps(teacher, scheduler, x, t, c) for c in pair)
        loss = (_eps(student, scheduler, x, t, pair[1]) - esd_target(eps_c, eps_0, settings.eta)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield Step(step, float(loss.detach()), int(t), request.concepts[i].name)


def _size(unet) -> tuple[int, int]:
    size = unet.config.sample_size
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def _eps(unet, scheduler, x: Tensor, t: Tensor, e: Tensor) -> Tensor:
    """ε (n, c, h, w) float32 of x_t."""
    a, b = noise_scale(scheduler, t)
    said = unet(x.to(unet.dtype), t, encoder_hidden_states=e.to(unet.dtype), return_dict=False)[0]
    return a * said.float() + b * x


@torch.no_grad()
def _denoised(unet, scheduler, x: Tensor, pair: tuple[Tensor, Tensor], stop: int, guidance: float):
    """x_t and t after `stop` steps of DDIM with classifier-free guidance."""
    both = torch.cat(pair)
    for t in scheduler.timesteps[:stop]:
        said = unet(torch.cat([x, x]).to(unet.dtype), t, encoder_hidden_states=both.to(unet.dtype), return_dict=False)[
            0
        ]
        u, c = said.float().chunk(2)
        x = scheduler.step(u + guidance * (c - u), t, x).prev_sample
    return x, scheduler.timesteps[stop]


@register("esd-u", ESDU, grid=GRID, trains=True)
@register("esd-x", ESD, published={"code": CODE_2025}, grid=GRID, trains=True)
def esd(request: Request, settings: ESD) -> WeightDelta:
    """The whole change of the trained weights; each step trains one concept."""
    check_text(request.pipe)
    student = copy.deepcopy(request.pipe.unet).float()
    with torch.enable_grad():
        for done in train(request, settings, student):
            request.tell("train", done.step, settings.steps, f"{done.concept}: loss {done.loss:.3g}")
    before, after = parameters(request.pipe.unet), trained(student, settings.variant)
    if len(request.concepts) > 1:
        request.note(f"{settings.steps} steps are shared by {len(request.concepts)} concepts, one drawn at each.")
    return WeightDelta({name: (w.detach().float() - before[name].float()).cpu() for name, w in after.items()})
