"""Where the time of an erasure goes, on a model at hand: text, statistics, pictures, masks, stage 2, re-fusion."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..concepts import Concept, sample_prompt
from ..config import EraseConfig
from ..erasure import Erasure
from ..job import erase
from ..method.lora.train import Example, TrainConfig, example, train
from ..method.masks import drawn_and_read, make_masks
from ..method.refine import concept_sums
from ..models.entrances import denoiser, text_weights
from ..models.pipelines import default_device, load_pipeline
from ..models.sample import generate
from ..models.swap import untouched
from ..models.text import encode
from ..templates import COMPANIONS
from .layouts import random_pipeline

BATCH = 8  # pictures drawn at once
NEAR = 1e-4  # relative difference of LoRAs that train in one pass and one by one, above which it is said


def whole(
    pipe, pictures: int = 2, steps: int = 5, train_steps: int = 5, concepts: Sequence[str] = COMPANIONS, progress=None
) -> list[str]:
    """Seconds of every step of an erasure, each measured by itself, in lines.

    pictures: of a concept, in `steps` denoising steps. train_steps: of stage 2, all concepts in one pass against one by
    one. `progress(stage, done, total, detail)`.
    """
    tell, chosen = progress or (lambda *_: None), [Concept(name, "a thing") for name in concepts]
    names = ["text", "statistics", "pictures", "masks", "drawn masks", "stage 2", "one by one", "re-fusion"]
    told = iter(range(1, len(names) + 1))

    def clock(start: float) -> float:
        if pipe.device.type == "cuda":
            torch.cuda.synchronize(pipe.device)
        seconds, done = time.perf_counter() - start, next(told)
        tell("bench", done, len(names), names[done - 1])
        return seconds

    generate(pipe, "a thing", range(1), steps=1)  # the libraries' own start is not measured
    start = time.perf_counter()
    encode(pipe, [f"{i} things on a table" for i in range(64)])
    lines = [f"text: {1000 * clock(start) / 64:.1f} ms a prompt"]
    start = time.perf_counter()
    for concept in chosen[:2]:
        concept_sums(pipe, concept)
    lines.append(f"statistics (X, G, C): {clock(start) / 2:.2f} s a concept")
    drawn, masks, said = _pictures(pipe, chosen, pictures, steps, clock)
    lines += said
    config = EraseConfig().for_model(pipe, chosen).training("object")
    config = replace(config, steps=train_steps, concepts_per_pass=len(chosen), prompt="sample")
    examples = [example(pipe, *each, config=config) for each in zip(chosen, drawn, masks, strict=True)]
    start = time.perf_counter()
    together = _trained(pipe, examples, config)
    one_pass = clock(start) / train_steps / len(chosen)
    start = time.perf_counter()
    apart = [_trained(pipe, [e], replace(config, concepts_per_pass=1))[0] for e in examples]
    alone = clock(start) / train_steps / len(chosen)
    apart_by = max(float((a - b).norm() / b.norm()) for a, b in zip(together, apart, strict=True))
    same = "the same result" if apart_by <= NEAR else f"results {apart_by:.1e} apart"
    lines.append(
        f"stage 2: {1000 * one_pass:.0f} ms a concept and step, {len(chosen)} in one pass; {1000 * alone:.0f} ms one "
        f"by one, {alone / one_pass:.1f} times as long, {same}"
    )
    erasure = _erasure(pipe, chosen)
    start = time.perf_counter()
    list(erasure.without(chosen[0].name).weights(text_weights(denoiser(pipe))))
    return [*lines, f"one of {len(chosen)} concepts off: {clock(start):.2f} s"]


def _pictures(pipe, chosen: list[Concept], n: int, steps: int, clock: Callable[[float], float]) -> tuple:
    """n pictures of each concept and their masks, by concept, and what they took in lines; batches go over concepts."""
    prompts = [sample_prompt(concept) for concept in chosen for _ in range(n)]
    seeds, many = [*range(n)] * len(chosen), len(prompts)
    start = time.perf_counter()
    images = generate(pipe, prompts, seeds, steps=steps)
    each, drawn = clock(start) / many, [images[i : i + n] for i in range(0, many, n)]
    start = time.perf_counter()
    masks = [make_masks("attention", pipe, c, some) for c, some in zip(chosen, drawn, strict=True)]
    own, start = clock(start) / many, time.perf_counter()
    for i in range(0, many, BATCH):
        some = slice(i, i + BATCH)
        names = [concept.name for concept in chosen for _ in range(n)][some]
        drawn_and_read(pipe, names, prompts[some], seeds[some], steps=steps)
    more = clock(start) / many - each
    lines = [f"training pictures: {each:.2f} s each in {steps} steps, {1000 * each / steps:.0f} ms a step"]
    return drawn, masks, [*lines, f"masks from attention: {own:.2f} s a picture; {more:+.2f} s out of its own drawing"]


def at_size(layout: str, device: str | None = None, progress=None, dtype: torch.dtype | None = None) -> list[str]:
    """`whole` with random weights in the layout of a real model: two concepts, one picture each, two steps.

    Texts are read with mini-SD's vocabulary. device: cpu, cuda, ...; None: the fastest. dtype: float32 unless given.
    """
    pipe = random_pipeline(layout, load_pipeline("mini-sd", device="cpu").tokenizer)
    pipe.to(device or default_device(), dtype or torch.float32)
    lines = whole(pipe, 1, 2, 2, COMPANIONS[:2], progress)
    return [f"{layout}, random weights, on {pipe.device.type}:", *lines]


def _trained(pipe, examples: list[Example], config: TrainConfig) -> list[torch.Tensor]:
    """All numbers of each concept's LoRA; the pipeline stays as it is."""
    with untouched(pipe):
        loras = train(pipe, examples, config).finish()
    return [torch.cat([*(b[i].flatten() for b in loras.B.values())]).double() for i in range(len(examples))]


def _erasure(pipe, concepts: list[Concept]) -> Erasure:
    """Their erasure by stage 1, with its sums at hand."""
    config = EraseConfig.from_dict({"stages": "1", "prior": {"use": False}, "refine": {"lambda0": 1.0}})
    with tempfile.TemporaryDirectory(prefix="macelib-") as folder:
        erasure = erase(pipe, concepts, config, progress=False, folder=Path(folder))
    list(erasure.weights(text_weights(denoiser(pipe))))
    return erasure
