"""Diffusion transformers: how their pipelines read a prompt.

A prompt is read by the pipeline's own `encode_prompt`, with what its `__call__` hands to it: lengths, cleaning and an
instruction before the prompt are not what `encode_prompt` itself would take. PixArt and Sana project the text before
their cross-attention reads it, and mask its padding in the encoder and there.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils import is_bs4_available, is_ftfy_available
from torch import Tensor, nn

from .entrances import denoiser
from .tokens import View

PIPELINES = {
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
    "SanaPipeline": "sana",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
}
DENOISERS = {
    "pixart": "PixArtTransformer2DModel",
    "sana": "SanaTransformer2DModel",
    "sd3": "SD3Transformer2DModel",
    "flux": "FluxTransformer2DModel",
}
MASKED = ("pixart", "sana")
PROJECTIONS = ("caption_projection", "caption_norm")


def kind_of(pipe) -> str | None:
    """Which transformer a pipeline is of: "pixart", "sana", "sd3" or "flux"; None for another class, or its relatives.

    (A pipeline that derives from one of these may read its text otherwise.)
    """
    kind = PIPELINES.get(type(pipe).__name__)
    model = getattr(pipe, "transformer", None)
    return kind if kind and type(model).__name__ == DENOISERS[kind] else None


def views(pipe) -> list[View]:
    """The tokenizers by which the positions of the text are numbered, as the pipeline's call uses them."""
    kind = kind_of(pipe)
    if kind == "sd3":  # the second CLIP's tokens stand beside the first one's
        first = View(pipe.tokenizer, pipe.tokenizer_max_length)
        if pipe.text_encoder_3 is None:
            return [first]
        return [first, View(pipe.tokenizer_3, default(pipe, "max_sequence_length"), at=first.length)]
    tokenizer = pipe.tokenizer_2 if kind == "flux" else pipe.tokenizer
    prepare = (lambda text: pipe._text_preprocessing(text, clean_caption=_cleans(pipe))[0]) if kind in MASKED else str
    before = "\n".join(default(pipe, "complex_human_instruction") or ())
    return [View(tokenizer, default(pipe, "max_sequence_length"), prepare, before, masked=kind in MASKED)]


def default(pipe, name: str) -> Any:
    """What the pipeline's call takes for an argument that it isn't given; None where it has none of that name."""
    found = inspect.signature(type(pipe).__call__).parameters.get(name)
    return None if found is None else found.default


def _cleans(pipe) -> bool:
    """Whether the call cleans captions; it doesn't where a library that it needs is missing."""
    return bool(default(pipe, "clean_caption")) and is_bs4_available() and is_ftfy_available()


@torch.no_grad()
def encoded(pipe, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """What the entrances read of the prompts: tokens (n, T, d), zero where padding is masked, and pooled (n, p)."""
    kind, model = kind_of(pipe), denoiser(pipe)
    wanted = {"prompt": prompts, "prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False}
    wanted |= {name: default(pipe, name) for name in ("max_sequence_length", "complex_human_instruction")}
    wanted["clean_caption"] = _cleans(pipe)
    known = inspect.signature(pipe.encode_prompt).parameters
    found = pipe.encode_prompt(**{name: value for name, value in wanted.items() if name in known})
    tokens = found[0]
    if kind in MASKED:
        tokens = tokens.to(model.device, model.dtype)
        for module in projections(model).values():
            tokens = module(tokens)
        tokens = tokens * found[1][..., None].to(tokens)  # (n, T, d)
    pooled = {"sd3": 2, "flux": 1}.get(kind)
    return tokens.float(), tokens.new_empty(len(tokens), 0).float() if pooled is None else found[pooled].float()


def text_mask(pipe, prompts: list[str]) -> Tensor:
    """1 where a token is read, 0 where padding is masked: (n, T) float32."""
    (view,) = views(pipe)
    return torch.tensor([[float(a >= 0) for a, _ in view.read(prompt)[1]] for prompt in prompts])


def projections(model: nn.Module) -> dict[str, nn.Module]:
    """What stands between the text encoder and cross-attention, by name, in the order of execution."""
    return {name: getattr(model, name) for name in PROJECTIONS if getattr(model, name, None) is not None}


@contextmanager
def projected(model: nn.Module) -> Iterator[None]:
    """The model as one that is given what its cross-attention reads: what projects the text lets it through."""
    kept = projections(model)
    try:
        for name in kept:
            setattr(model, name, nn.Identity())
        yield
    finally:
        for name, module in kept.items():
            setattr(model, name, module)
