"""Stage 2 of a group of concepts, from pictures to LoRAs: images and masks by the original model, training by W R."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ...concepts import Concept
from ...config import EraseConfig
from ...files import hash_text, locked, name_of, read_cached, save_tensors, write_json
from ...models.entrances import denoiser, kv_weights, pooled_columns, pooled_weights
from ...models.swap import untouched
from ..fuse import changed, less_identity
from ..images import Asked, draw_together, read_images, read_maps, scheduled, seconds
from ..masks import make_masks
from .train import Example, TrainConfig, example, train

Tell = Callable[[str, int, str], None]  # stage, done, detail
Look = Callable[[Concept, Sequence[Image.Image]], None]  # concept, its training pictures


@dataclass(frozen=True)
class Work:
    """Stage 2 of one group of concepts, as another process can do it."""

    concepts: list[Concept]
    training: TrainConfig
    config: EraseConfig
    layers: tuple[str, ...]
    R: torch.Tensor  # (d, d): W' = W R, of all concepts together
    pooled: torch.Tensor | None  # (p, p): the same of the pooled text; None: the model reads none
    base: str  # `model_hash` of the model
    drawn: str  # `drawing_hash` of the model
    folder: Path
    key: str  # what the LoRAs depend on

    @property
    def kept(self) -> Path:
        """Where its LoRAs are kept."""
        return self.folder / "loras" / f"{self.key}.safetensors"

    @property
    def spent(self) -> Path:
        """Where the seconds are kept that training takes, as it goes on; pictures have theirs in their manifest."""
        return self.folder / "seconds" / f"{self.key}.json"

    def pictures(self, concept: Concept) -> Path:
        """Folder of a concept's training pictures: one for each way to draw them, so that no two settings meet."""
        images = self.config.of(concept.kind).images
        how = images.steps, images.guidance, images.autocast, images.count, images.scheduler
        how += ("maps",) if self.maps else ()
        key = hash_text(self.base, self.drawn, concept.name, concept.kind, self.config.seed, *how)[:16]
        return self.folder / "images" / f"{name_of(concept.name)}-{key}"

    @property
    def maps(self) -> bool:
        """Whether masks may come out of the passes that draw the pictures."""
        kind = self.concepts[0].kind
        return kind != "style" and "drawing" in (self.config.mask_source(kind), *self.config.of(kind).images.fallback)

    def keep(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write its LoRAs."""
        save_tensors(self.kept, tensors, {"key": self.key})

    def read(self) -> dict[str, torch.Tensor] | None:
        """Its LoRAs; None where they are not kept, or damaged."""
        return read_cached(self.kept, self.key)


def train_work(pipe, work: Work, tell: Tell, look: Look | None = None) -> dict[str, torch.Tensor]:
    """The LoRAs of a group: "i.B" (Σ out, r) and "i.D" (L, r, d) of its i-th concept.

    `look` is shown every concept's training pictures. Another process that trains the same group in the same folder is
    waited for, and its LoRAs are read.
    """
    names = ", ".join(concept.name for concept in work.concepts[:3])
    with locked(work.folder / ".locks" / f"{work.key}.lock", f"the LoRAs of {names} in {work.folder}") as waited:
        kept = work.read() if waited else None
        return _trained(pipe, work, names, tell, look) if kept is None else kept


def _trained(pipe, work: Work, names: str, tell: Tell, look: Look | None) -> dict[str, torch.Tensor]:
    """`train_work` by this process."""
    running = work.kept.with_suffix(".part.safetensors")
    _draw(pipe, work, tell)
    began = told = time.perf_counter() - seconds(work.spent)
    examples = [_example(pipe, concept, work, look) for concept in work.concepts]
    tell("images", len(examples), work.concepts[-1].name)
    with untouched(pipe):
        _refine(pipe, work.R, work.pooled)
        every = max(1, work.training.steps // len(examples))  # a kill loses one concept's steps at most
        run = train(pipe, examples, work.training, running, every)
        for record in run:
            tell("train", record.step, f"{names}: loss {float(record.losses.mean()):.3g}")
            if time.perf_counter() > told + 1:
                told = time.perf_counter()
                write_json(work.spent, {"seconds": told - began})
    tensors = {}
    for i in range(len(work.concepts)):
        B, D = run.loras.select(i)
        tensors[f"{i}.B"] = torch.cat([B[n] for n in work.layers]).float().cpu()
        tensors[f"{i}.D"] = torch.stack([D[n] for n in work.layers]).float().cpu()
    write_json(work.spent, {"seconds": time.perf_counter() - began})
    work.keep(tensors)
    running.unlink(missing_ok=True)
    return tensors


@torch.no_grad()
def _refine(pipe, R: torch.Tensor, pooled: torch.Tensor | None) -> None:
    """Write W' = W R (Eq. 2) into the pipeline, and the same of the pooled text."""
    change = less_identity(R).float()
    for name, w in kv_weights(denoiser(pipe)).items():
        w.copy_(changed(w, change, name))
    for w in () if pooled is None else pooled_weights(denoiser(pipe)).values():
        w.copy_(pooled_columns(w, pooled))


def _draw(pipe, work: Work, tell: Tell) -> None:
    """Training pictures of all concepts by the original model, those that are missing; batches go over concepts."""
    images = work.config.of(work.concepts[0].kind).images
    asked = [Asked(concept, work.pictures(concept), _seed(work.config, concept)) for concept in work.concepts]

    def told(done: int, _: int) -> None:
        if whole := done // images.count:
            tell("images", whole, work.concepts[whole - 1].name)

    options = {name: getattr(images, name) for name in ("steps", "guidance", "batch", "autocast")}
    with scheduled(pipe, images.scheduler):
        draw_together(pipe, asked, images.count, model=work.base, maps=work.maps, callback=told, **options)


def _example(pipe, concept: Concept, work: Work, look: Look | None) -> Example:
    """Training data of one concept: its pictures, masks, embeddings."""
    folder, source = work.pictures(concept), work.config.mask_source(concept.kind)
    images, _ = read_images(folder)
    if look:
        look(concept, images)
    maps, fallback = read_maps(folder) if work.maps else None, work.config.of(concept.kind).images.fallback
    masks = make_masks(source, pipe, concept, images, maps=maps, fallback=fallback)
    return example(pipe, concept, images, masks, config=work.training)


def _seed(config: EraseConfig, concept: Concept) -> int:
    """Of a concept's first picture."""
    return int.from_bytes(hashlib.sha256(f"{config.seed}|{concept.name}".encode()).digest()[:4], "big") >> 1
