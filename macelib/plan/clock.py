"""A short calibration: seconds of a few real passes on the device, from which the rest is reckoned."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from ..concepts import Concept
from ..method.refine import compress, concept_sums, concept_texts, stored_rank
from ..models.entrances import kv_weights
from ..models.offload import runs_on
from ..models.pipelines import cast
from ..models.sample import image_size
from ..models.text import added_conditions, embedding_size, encode, tokenizers

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
    layers = [w.shape[0] for w in kv_weights(pipe.unet).values()]
    start = time.perf_counter()
    X, G, C = (s.cpu() for s in concept_sums(pipe, concept, texts=concept_texts(pipe, concept, {})))
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
    unet, place = pipe.unet, {"device": runs_on(pipe.unet), "dtype": pipe.unet.dtype}
    height, width = (n // pipe.vae_scale_factor for n in size)

    def call(count: int):
        x = torch.zeros(count, unet.config.in_channels, height, width, **place)
        e = torch.zeros(count, tokenizers(pipe)[0].model_max_length, unet.config.cross_attention_dim, **place)
        added = added_conditions(pipe, ["a table"] * count, size)
        added = added and {name: value.to(**place) for name, value in added.items()}
        with cast(pipe, autocast):
            return unet(x, 1, e, added_cond_kwargs=added)

    return call


def _wait(pipe) -> None:
    if runs_on(pipe.unet).type == "cuda":
        torch.cuda.synchronize()


def held(pipe) -> int:
    """Bytes that the process holds with the model: of the GPU's memory, or of the machine's."""
    if runs_on(pipe.unet).type == "cuda":
        return torch.cuda.memory_allocated()
    for part in pipe.components.values():  # weights that are mapped from a file count when they are read
        for p in part.parameters() if isinstance(part, torch.nn.Module) else ():
            p.detach().flatten()[::512].sum()
    return psutil.Process().memory_info().rss


def free(pipe) -> int:
    """Bytes of memory that are not in use where the denoiser runs."""
    if runs_on(pipe.unet).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available
