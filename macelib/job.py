"""The main job: `erase` runs the three stages and leaves the pipeline as it was."""

import contextlib
import dataclasses
import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from . import __version__
from . import prior as priors
from .concepts import Concept, anchored, check_concepts, prompts, with_synonyms
from .config import KINDS, EraseConfig
from .erasure import Erasure, Part, versions
from .errors import MaceError, explained
from .files import atomic, hash_text
from .fuse import Fusion, fused_weight
from .lora import Example, TrainConfig, example, train
from .masks import make_masks
from .pipelines import check_pipeline, drawing_hash, kv_weights, load_pipeline, model_hash
from .refine import compress, concept_sums, difference, solve_refinement, stored_rank
from .sample import read_images, training_images
from .swap import untouched
from .text import embedding_size

log = logging.getLogger(__name__)
Progress = Callable[[str, int, int, str], None]  # stage, done, total, detail
MANY = 10  # concepts from which on general captions alone protect other names badly


def erase(
    pipe,
    concepts: Sequence[Concept],
    config: EraseConfig | None = None,
    *,
    progress: Progress | None = None,
    folder: str | Path | None = None,
    prior: priors.Prior | None = None,
    engine=None,
) -> Erasure:
    """Erase concepts from a text-to-image pipeline: stages 1-3 of MACE, Eq. 1-7.

    `progress(stage, done, total, detail)` is called as the work goes on. With a `folder`, training images and LoRAs are
    kept there, and a call that was cut short goes on where it stopped. `prior`: statistics made before.
    `engine` (`macelib.batch.make_engine`): groups of concepts train in processes of their own, here or on a cluster;
    each loads the model, so the pipeline must come from `load_pipeline`.
    The pipeline is left exactly as it was; `Erasure.apply` writes the result into it. MaceError says what is wrong.
    """
    config, tell, concepts = config or EraseConfig(), progress or (lambda *_: None), list(concepts)
    for note in check_concepts(concepts):
        log.warning(note)
    if len(concepts) >= MANY and config.prior.use and not config.prior.domain:
        log.warning(
            "%d concepts go and no name is said to stay: names like theirs may go, too. Say which must stay with "
            "EraseConfig.keeping([...]), or --keep on the command line.",
            len(concepts),
        )
    check_pipeline(pipe)
    with contextlib.ExitStack() as stack:
        stack.enter_context(explained())
        place = Path(folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="macelib-")))
        stack.enter_context(untouched(pipe))
        layers, d = {name: w.shape[0] for name, w in kv_weights(pipe.unet).items()}, embedding_size(pipe)
        parts, cache, exact = [], {}, torch.zeros(2, d, d, dtype=torch.float64)  # ΣX, ΣG
        for i, concept in enumerate(concepts):  # first, because a prompt that is too long ends here
            X, G, C = (s.cpu() for s in concept_sums(pipe, concept, config.refine.products, cache))
            weight, rank = config.weight(concept.kind), config.training(concept.kind).rank
            exact += weight * torch.stack([X, G])
            statistics = compress(X, G, C, stored_rank(d, [*layers.values()], rank)).to(torch.float32)
            empty = torch.zeros(sum(layers.values()), 0), torch.zeros(len(layers), 0, d)
            parts.append(Part(concept, statistics, *empty, weight=weight))
            tell("statistics", i + 1, len(concepts), concept.name)
        prior = prior or prior_of(pipe, concepts, config)
        P, key = (prior.P, prior.key) if prior else (None, "")
        erasure = Erasure(tuple(parts), layers, d, model_hash(pipe), P, key, config, versions())
        truncation = _truncation(erasure, *exact)
        log.info("Stage 1: condition %.3g, residual %.3g", erasure.refinement.condition, erasure.refinement.residual)
        drawn = drawing_hash(pipe)
        common = _dependence(erasure, drawn)
        works = [Work.of(erasure, group, training, place, drawn, common) for group, training in _groups(parts, config)]
        trained = {}
        for work, tensors in _here(pipe, works, tell) if engine is None else _elsewhere(pipe, works, engine, tell):
            for i, concept in enumerate(work.concepts):
                trained[concept.name] = tensors[f"{i}.B"], tensors[f"{i}.D"]
    parts = [dataclasses.replace(p, B=B, D=D) for p in parts for B, D in [trained[p.concept.name]]]
    done = dataclasses.replace(erasure, parts=tuple(parts), truncation=truncation)
    done.__dict__["_sums"] = erasure._sums  # the LoRAs do not change the statistics
    return done


def _dependence(erasure: Erasure, drawn: str) -> str:
    """Hash of what the LoRAs of every group depend on: model, prior, settings, and all concepts' prompts, as R does."""
    c, everything = erasure.config, [(p.concept, prompts(p.concept), anchored(p.concept)) for p in erasure.parts]
    settings = (c.seed, c.defaults, c.prior, c.refine, c.images, KINDS)
    return hash_text(__version__, erasure.base, drawn, erasure.prior_key, everything, *settings)


def _truncation(erasure: Erasure, X: torch.Tensor, G: torch.Tensor) -> float:
    """How far R is from that of the whole sums; a warning where that is more than a hundredth of what it changes."""
    refine = erasure.config.refine
    exact = solve_refinement(X, G, erasure.P, erasure.prior_weight(refine.lambda1), erasure.ridge(refine.lambda0)).R
    found = difference(erasure.refinement.R, exact)
    if found > 0.01:
        log.warning("What half a megabyte per concept keeps of its statistics is off by %.1f %% of R − I.", 100 * found)
    return found


def prior_of(pipe, concepts: Sequence[Concept], config: EraseConfig) -> priors.Prior | None:
    """The prior that the settings ask for, without the captions that name a concept or a known synonym of one."""
    if not config.prior.use or not (config.refine.lambda1 or config.fuse.lambda2):
        return None
    captions = config.prior.captions or priors.captions_for(pipe)
    domain = {name: getattr(config.prior, name) for name in ("domain", "names", "lambda3")}
    return priors.prior(pipe, captions, **domain, exclude=[with_synonyms(c) for c in concepts])


def _groups(parts: Sequence[Part], config: EraseConfig) -> Iterator[tuple[list[Part], TrainConfig]]:
    """Concepts that train in one forward pass: of one kind, at most `concepts_per_pass`."""
    for kind in dict.fromkeys(part.concept.kind for part in parts):
        members, training = [part for part in parts if part.concept.kind == kind], config.training(kind)
        for start in range(0, len(members), training.concepts_per_pass):
            yield members[start : start + training.concepts_per_pass], training


@dataclass(frozen=True)
class Work:
    """Stage 2 of one group of concepts, as another process can do it."""

    concepts: list[Concept]
    training: TrainConfig
    config: EraseConfig
    layers: tuple[str, ...]
    R: torch.Tensor  # (d, d): W' = W R, of all concepts together
    base: str  # `model_hash` of the model
    drawn: str  # `drawing_hash` of the model
    folder: Path
    key: str  # what the LoRAs depend on

    @classmethod
    def of(
        cls, erasure: Erasure, group: Sequence[Part], training: TrainConfig, folder: Path, drawn: str, common: str
    ) -> "Work":
        """The work of some of an erasure's concepts; common: what the LoRAs of all groups depend on."""
        concepts = [part.concept for part in group]
        key = hash_text(common, [concept.name for concept in concepts], training)[:16]
        layers, R = tuple(erasure.layers), erasure.refinement.R
        return cls(concepts, training, erasure.config, layers, R, erasure.base, drawn, folder, key)

    @property
    def kept(self) -> Path:
        """Where its LoRAs are kept."""
        return self.folder / "loras" / f"{self.key}.safetensors"

    def keep(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write its LoRAs."""
        with atomic(self.kept) as temporary:
            save_file(tensors, temporary)


def train_work(pipe, work: Work, tell: Callable[[str, int, str], None]) -> dict[str, torch.Tensor]:
    """The LoRAs of a group: "i.B" (Σ out, r) and "i.D" (L, r, d) of its i-th concept; tell(stage, done, detail)."""
    examples, running = [], work.kept.with_suffix(".part.safetensors")
    for i, concept in enumerate(work.concepts):  # by the original model
        examples.append(_example(pipe, concept, work))
        tell("images", i + 1, concept.name)
    names = ", ".join(concept.name for concept in work.concepts[:3])
    with untouched(pipe):
        _refine(pipe, work.R)
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


def _here(pipe, works: Sequence[Work], tell: Progress) -> Iterator[tuple[Work, dict[str, torch.Tensor]]]:
    """The groups one after the other; LoRAs that are in the folder already are read."""
    for i, work in enumerate(works):
        group = _counter(tell, works, i)
        tensors = _read(work.kept)
        if tensors is None:
            tensors = train_work(pipe, work, group)
        group("images", len(work.concepts), work.concepts[-1].name)
        group("train", work.training.steps, work.concepts[-1].name)
        yield work, tensors


def _counter(tell: Progress, works: Sequence[Work], i: int) -> Callable[[str, int, str], None]:
    """`tell` for group i: its images and steps as part of those of all groups."""
    before = {
        "images": (sum(len(w.concepts) for w in works[:i]), sum(len(w.concepts) for w in works)),
        "train": (sum(w.training.steps for w in works[:i]), sum(w.training.steps for w in works)),
    }
    return lambda stage, done, detail: tell(stage, before[stage][0] + done, before[stage][1], detail)


def _elsewhere(pipe, works: Sequence[Work], engine, tell: Progress) -> Iterator[tuple[Work, dict[str, torch.Tensor]]]:
    """The groups as jobs of an engine, as they finish. MaceError names those that failed, when the others are done."""
    from .batch.engines import Job

    source = pipe.__dict__.get("_macelib_source")
    if source is None:
        raise MaceError("An engine loads the model in each of its processes: load it with macelib.load_pipeline.")
    found = {work.key: _read(work.kept) for work in works}
    waiting = {work.key: work for work in works if found[work.key] is None}
    yield from ((work, found[work.key]) for work in works if work.key not in waiting)
    done, failed = sum(len(w.concepts) for w in works if w.key not in waiting), []
    total = sum(len(work.concepts) for work in works)
    how = source, pipe.scheduler, pipe.unet.dtype
    for outcome in engine.run(Job(key, train_elsewhere, (*how, work)) for key, work in waiting.items()):
        work = waiting[outcome.key]
        names = ", ".join(concept.name for concept in work.concepts)
        if outcome.error:
            failed.append(f"{names}: {outcome.error}")
            log.warning("The training of %s failed: %s", names, outcome.error)
            continue
        tensors, notes = outcome.value
        for note in notes:
            log.warning(note)
        done += len(work.concepts)
        tell("concepts", done, total, names)
        if not work.kept.exists():  # where the folder is not shared
            work.keep(tensors)
        yield work, tensors
    if failed:
        raise MaceError(f"{len(failed)} groups failed ({'; '.join(failed)}); call again, the others are kept.")


def train_elsewhere(
    source: tuple[str, dict], scheduler, dtype: torch.dtype, work: Work
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """`train_work` in a process of its own, and its warnings; MaceError where the model is not the caller's.

    The process sees the GPU that it is to use, whatever its number is: only the kind of device is taken over.
    """
    model, options = source
    device, notes = options["device"] and str(options["device"]).split(":")[0], []
    pipe = load_pipeline(model, **{**options, "device": device, "dtype": dtype})
    pipe.scheduler = scheduler
    if (model_hash(pipe), drawing_hash(pipe)) != (work.base, work.drawn):
        raise MaceError(
            f"{model}, as it is loaded here, is not the pipeline that the erasure began with: use the same weights on "
            "all machines, and save a pipeline that was changed after loading."
        )
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage())
    logging.getLogger("macelib").addHandler(handler)
    with explained():
        return train_work(pipe, work, lambda *_: None), notes


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
def _refine(pipe, R: torch.Tensor) -> None:
    """Write W' = W R (Eq. 2) into the pipeline."""
    for name, w in kv_weights(pipe.unet).items():
        w.copy_(fused_weight(w, Fusion(R, []), [], name, torch.float32))


def _example(pipe, concept: Concept, work: Work) -> Example:
    """Training data of one concept: pictures by the original model (kept ones are used), masks, embeddings."""
    config, safe = work.config, re.sub(r"[^a-z0-9]+", "-", concept.name.lower()).strip("-")
    folder = work.folder / "images" / f"{safe}-{hash_text(concept.name, concept.kind)[:6]}"
    digest = hashlib.sha256(f"{config.seed}|{concept.name}".encode()).digest()
    options = {name: getattr(config.images, name) for name in ("steps", "guidance", "batch", "autocast")}
    seed = int.from_bytes(digest[:4], "big") >> 1
    training_images(pipe, concept, config.image_count(concept.kind), folder, seed, model=work.base, **options)
    images, _ = read_images(folder)
    return example(pipe, concept, images, make_masks(config.mask_source(concept.kind), pipe, concept, images))
