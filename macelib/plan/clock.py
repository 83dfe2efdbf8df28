"""A short calibration: seconds of a few real passes on the device, from which the rest is reckoned."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from ..concepts import Concept
from ..method.refine import compress, concept_sums, concept_texts, stored_rank
from ..models.denoise import Levels, denoise
from ..models.entrances import denoiser, kv_weights, part_of
from ..models.offload import runs_on
from ..models.pipelines import cast
from ..models.sample import image_size
from ..models.text import added_conditions, embedding_size, encode

SOON = 2.0  # seconds: a pass is repeated, or made larger, while it takes less


@dataclass(frozen=True)
class Pace:
    """What a device takes, in seconds."""

    prompt: float  # to read one prompt
    concept: float  # of the statistics of one concept, with its prompts
    call: float  # of the denoiser, for one sample


def pace(pipe, concept: Concept, batch: int = 1, autocast: str | None = None, size=None) -> Pace:
    """Measure the text encoders, one concept's statistics, and the denoiser with up to `batch` samples at once."""
    prompts, d = [f"{i} things on a table" for i in range(4)], embedding_size(pipe)
    _, read = _timed(pipe, lambda _: encode(pipe, prompts), 1)
    layers = [w.shape[0] for w in kv_weights(denoiser(pipe)).values()]
    start = time.perf_counter()
    X, G, C = (s.cpu() for s in concept_sums(pipe, concept, texts=concept_texts(pipe, concept)))
    compress(X, G, C, stored_rank(d, layers, 1))
    statistics = time.perf_counter() - start
    samples, call = _timed(pipe, _call(pipe, autocast, image_size(pipe, size)), batch)
    return Pace(read / len(prompts), statistics, call / samples)


@torch.no_grad()
def _timed(pipe, call: Callable[[int], object], batch: int) -> tuple[int, float]:
    """Samples and seconds of a call: of one sample, then, while that is quick, once more with all of them."""
    for count in (1, batch):
        _wait(pipe)
        start = time.perf_counter()
        call(count)
        _wait(pipe)
        seconds = time.perf_counter() - start
        if seconds * batch > SOON:
            break
    return count, seconds


def _call(pipe, autocast: str | None, size: tuple[int, int]) -> Callable[[int], object]:
    model, latents = denoiser(pipe), latent_shape(pipe, size)
    t = Levels(pipe, latents[1:]).timesteps[200]
    place = {"device": runs_on(model), "dtype": model.dtype}

    def call(count: int):
        prompts = ["a table"] * count
        added = added_conditions(pipe, prompts, size)
        added = added and {name: value.to(place["device"]) for name, value in added.items()}
        e = encode(pipe, prompts).to(**place)
        with cast(pipe, autocast):
            return denoise(model, torch.zeros(count, *latents, **place), t, e, added)

    return call


def latent_shape(pipe, size: tuple[int, int]) -> tuple[int, int, int]:
    """(c, h, w) of the latents of a picture of this size (height, width)."""
    own = denoiser(pipe).config.in_channels if part_of(pipe) == "unet" else pipe.vae.config.latent_channels
    return own, *(n // pipe.vae_scale_factor for n in size)


def _wait(pipe) -> None:
    if runs_on(denoiser(pipe)).type == "cuda":
        torch.cuda.synchronize()


def held(pipe) -> int:
    """Bytes that the process holds with the model: of the GPU's memory, or of the machine's."""
    if runs_on(denoiser(pipe)).type == "cuda":
        return torch.cuda.memory_allocated()
    for part in pipe.components.values():  # weights that are mapped from a file count when they are read
        for p in part.parameters() if isinstance(part, torch.nn.Module) else ():
            p.detach().flatten()[::512].sum()
    return psutil.Process().memory_info().rss


def free(pipe) -> int:
    """Bytes of memory that are not in use where the denoiser runs."""
    if runs_on(denoiser(pipe)).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available
