"""Stage 2 of a group of concepts, from pictures to LoRAs: images and masks by the original model, training by W R."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ...concepts import Concept
from ...config import EraseConfig
from ...files import atomic, name_of
from ...models.entrances import kv_weights, pooled_columns, pooled_weights
from ...models.swap import untouched
from ..fuse import Fusion, fused_weight
from ..images import read_images, training_images
from ..masks import make_masks
from .train import Example, TrainConfig, example, train

log = logging.getLogger(__name__)


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

    def keep(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write its LoRAs."""
        with atomic(self.kept) as temporary:
            save_file(tensors, temporary)

    def read(self) -> dict[str, torch.Tensor] | None:
        """Its LoRAs; None where they are not kept, or damaged."""
        try:
            return load_file(self.kept)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            log.warning("%s cannot be read (%s): its LoRAs are trained again.", self.kept, error)
            return None


def train_work(pipe, work: Work, tell: Callable[[str, int, str], None]) -> dict[str, torch.Tensor]:
    """The LoRAs of a group: "i.B" (Σ out, r) and "i.D" (L, r, d) of its i-th concept; tell(stage, done, detail)."""
    examples, running = [], work.kept.with_suffix(".part.safetensors")
    for i, concept in enumerate(work.concepts):  # by the original model
        examples.append(_example(pipe, concept, work))
        tell("images", i + 1, concept.name)
    names = ", ".join(concept.name for concept in work.concepts[:3])
    with untouched(pipe):
        _refine(pipe, work.R, work.pooled)
        every = max(1, work.training.steps // len(examples))  # a kill loses one concept's steps at most
        run = train(pipe, examples, work.training, running, every)
        for record in run:
            tell("train", record.step, f"{names}: loss {float(record.losses.mean()):.3g}")
    tensors = {}
    for i in range(len(work.concepts)):
        B, D = run.loras.select(i)
        tensors[f"{i}.B"] = torch.cat([B[n] for n in work.layers]).float().cpu()
        tensors[f"{i}.D"] = torch.stack([D[n] for n in work.layers]).float().cpu()
    work.keep(tensors)
    running.unlink(missing_ok=True)
    return tensors


@torch.no_grad()
def _refine(pipe, R: torch.Tensor, pooled: torch.Tensor | None) -> None:
    """Write W' = W R (Eq. 2) into the pipeline, and the same of the pooled text."""
    for name, w in kv_weights(pipe.unet).items():
        w.copy_(fused_weight(w, Fusion(R, []), [], name, torch.float32))
    for w in () if pooled is None else pooled_weights(pipe.unet).values():
        w.copy_(pooled_columns(w, pooled))


def _example(pipe, concept: Concept, work: Work) -> Example:
    """Training data of one concept: pictures by the original model (kept ones are used), masks, embeddings."""
    config = work.config
    folder = work.folder / "images" / f"{name_of(concept.name)}-{concept.kind}"
    digest = hashlib.sha256(f"{config.seed}|{concept.name}".encode()).digest()
    options = {name: getattr(config.images, name) for name in ("steps", "guidance", "batch", "autocast")}
    seed = int.from_bytes(digest[:4], "big") >> 1
    training_images(pipe, concept, config.image_count(concept.kind), folder, seed, model=work.base, **options)
    images, _ = read_images(folder)
    return example(pipe, concept, images, make_masks(config.mask_source(concept.kind), pipe, concept, images))
