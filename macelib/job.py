"""The main job: `erase` runs the three stages and leaves the pipeline as it was."""

import contextlib
import dataclasses
import errno
import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from . import prior as priors
from .concepts import Concept, check_concepts
from .config import KINDS, PRODUCTS, EraseConfig
from .erasure import Erasure, Part, versions
from .errors import MaceError
from .files import atomic, hash_text
from .fuse import Fusion, fused_weight
from .lora import Example, TrainConfig, example, train
from .masks import make_masks
from .pipelines import check_pipeline, kv_weights, model_hash
from .refine import concept_statistics
from .sample import read_images, training_images
from .swap import untouched

log = logging.getLogger(__name__)
Progress = Callable[[str, int, int, str], None]  # stage, done, total, detail


def erase(
    pipe,
    concepts: Sequence[Concept],
    config: EraseConfig | None = None,
    *,
    progress: Progress | None = None,
    folder: str | Path | None = None,
    prior: priors.Prior | None = None,
) -> Erasure:
    """Erase concepts from a text-to-image pipeline: stages 1-3 of MACE, Eq. 1-7.

    `progress(stage, done, total, detail)` is called as the work goes on. With a `folder`, training images and LoRAs are
    kept there, and a call that was cut short goes on where it stopped. `prior`: statistics made before.
    The pipeline is left exactly as it was; `Erasure.apply` writes the result into it. MaceError says what is wrong.
    """
    config, tell, concepts = config or EraseConfig(), progress or (lambda *_: None), list(concepts)
    for note in check_concepts(concepts):
        log.warning(note)
    check_pipeline(pipe)
    with contextlib.ExitStack() as stack:
        stack.enter_context(explained())
        place = Path(folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="macelib-")))
        stack.enter_context(untouched(pipe))
        layers = {name: w.shape[0] for name, w in kv_weights(pipe.unet).items()}
        parts, cache = [], {}
        for i, concept in enumerate(concepts):  # first, because a prompt that is too long ends here
            statistics = concept_statistics(pipe, concept, PRODUCTS[config.refine.products], cache=cache)
            empty = torch.zeros(sum(layers.values()), 0), torch.zeros(len(layers), 0, len(statistics.Q))
            parts.append(Part(concept, statistics, *empty, weight=config.kind(concept.kind)["weight"]))
            tell("statistics", i + 1, len(concepts), concept.name)
        prior = prior or _prior(pipe, concepts, config)
        P, key = (prior.P, prior.key) if prior else (None, "")
        erasure = Erasure(tuple(parts), layers, len(statistics.Q), model_hash(pipe), P, key, config, versions())
        log.info("Stage 1: condition %.3g, residual %.3g", erasure.refinement.condition, erasure.refinement.residual)
        trained, groups = {}, list(_groups(parts, config))
        for i, (group, training) in enumerate(groups):
            trained |= _train(pipe, erasure, group, training, place, _counter(tell, i, groups, len(concepts)))
    return erasure.of(trained[part.concept.name] for part in parts)


def _prior(pipe, concepts: Sequence[Concept], config: EraseConfig) -> priors.Prior | None:
    """The prior that the settings ask for, without the captions that name a concept."""
    if not config.prior.use or not (config.refine.lambda1 or config.fuse.lambda2):
        return None
    captions = config.prior.captions or priors.captions_for(pipe)
    domain, lambda3 = config.prior.domain, config.prior.lambda3
    return priors.prior(pipe, captions, domain=domain, lambda3=lambda3, exclude=concepts)


def _groups(parts: Sequence[Part], config: EraseConfig) -> Iterator[tuple[list[Part], TrainConfig]]:
    """Concepts that train in one forward pass: of one kind, at most `concepts_per_pass`."""
    for kind in dict.fromkeys(part.concept.kind for part in parts):
        members, training = [part for part in parts if part.concept.kind == kind], config.training(kind)
        for start in range(0, len(members), training.concepts_per_pass):
            yield members[start : start + training.concepts_per_pass], training


def _counter(tell: Progress, i: int, groups: list, concepts: int) -> Progress:
    """`tell` for group i: its images and steps as part of those of all groups."""
    before = {
        "images": (sum(len(group) for group, _ in groups[:i]), concepts),
        "train": (sum(t.steps for _, t in groups[:i]), sum(t.steps for _, t in groups)),
    }
    return lambda stage, done, detail: tell(stage, before[stage][0] + done, before[stage][1], detail)


def _train(pipe, erasure: Erasure, group: list[Part], training: TrainConfig, place: Path, tell) -> dict[str, Part]:
    """Stage 2 of one group: the parts with their LoRAs, by name; read from the folder where they are there already."""
    names, config = [part.concept.name for part in group], erasure.config
    everything = [part.concept for part in erasure.parts]  # W' is that of all concepts together
    settings = (config.seed, config.defaults, config.prior, config.refine, config.images, KINDS, training)
    key = hash_text(erasure.base, erasure.prior_key, everything, names, *settings)[:16]
    kept, running = place / "loras" / f"{key}.safetensors", place / "loras" / f"{key}.part.safetensors"
    tensors = _read(kept)
    if tensors is None:
        examples = []
        for i, name in enumerate(names):  # by the original model
            examples.append(_example(pipe, group[i].concept, config, place))
            tell("images", i + 1, name)
        with untouched(pipe):
            _refine(pipe, erasure)
            run = train(pipe, examples, training, running)
            for record in run:
                tell("train", record.step, f"{', '.join(names[:3])}: loss {float(record.losses.mean()):.3g}")
        tensors = {}
        for i in range(len(group)):
            B, D = run.loras.select(i)
            tensors[f"{i}.B"] = torch.cat([B[n] for n in erasure.layers]).float().cpu()  # (Σ out, r)
            tensors[f"{i}.D"] = torch.stack([D[n] for n in erasure.layers]).float().cpu()  # (L, r, d)
        with atomic(kept) as temporary:
            save_file(tensors, temporary)
        running.unlink(missing_ok=True)
    tell("images", len(group), names[-1])
    tell("train", training.steps, names[-1])
    pairs = {p.concept.name: (p, tensors[f"{i}.B"], tensors[f"{i}.D"]) for i, p in enumerate(group)}
    return {name: dataclasses.replace(part, B=B, D=D) for name, (part, B, D) in pairs.items()}


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """Tensors of a file; None where it is not there or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be read (%s): its LoRAs are trained again.", path, error)
        return None


@torch.no_grad()
def _refine(pipe, erasure: Erasure) -> None:
    """Write W' = W R (Eq. 2) into the pipeline."""
    for name, w in kv_weights(pipe.unet).items():
        w.copy_(fused_weight(w, Fusion(erasure.refinement.R, []), [], name, torch.float32))


def _example(pipe, concept: Concept, config: EraseConfig, place: Path) -> Example:
    """Training data of one concept: pictures by the original model (kept ones are used), masks, embeddings."""
    safe = re.sub(r"[^a-z0-9]+", "-", concept.name.lower()).strip("-")
    folder = place / "images" / f"{safe}-{hash_text(concept.name, concept.kind)[:6]}"
    digest = hashlib.sha256(f"{config.seed}|{concept.name}".encode()).digest()
    options = {"steps": config.images.steps, "guidance": config.images.guidance, "batch": config.images.batch}
    seed = int.from_bytes(digest[:4], "big") >> 1
    training_images(pipe, concept, config.image_count(concept.kind), folder, seed, **options)
    images, _ = read_images(folder)
    return example(pipe, concept, images, make_masks(config.mask_source(concept.kind), pipe, concept, images))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Out of memory and out of space as a MaceError that says what to do."""
    try:
        yield
    except MaceError:
        raise
    except (RuntimeError, MemoryError, OSError, SafetensorError) as error:
        text = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text:
            raise MaceError(
                "The memory is full: lower train.concepts_per_pass and images.batch, or set "
                "train.gradient_checkpointing; what was done so far is kept in the folder."
            ) from error
        if getattr(error, "errno", None) == errno.ENOSPC or "no space left" in text:
            raise MaceError("The disk is full: free some space and call again; what was done is kept.") from error
        raise
