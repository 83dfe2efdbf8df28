"""The main job: `erase` runs the three stages and leaves the pipeline as it was."""

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from .checks import check, check_kinds
from .concepts import (
    Concept,
    anchored,
    listed,
    prompts,
    with_companions,
    with_synonyms,
    with_templates,
)
from .config import EraseConfig
from .erasure import Erasure, Part, versions
from .errors import MaceError, explained
from .groups import Progress, grouped, train_by, train_here
from .method import prior as priors
from .method.fuse import null_space
from .method.influence import step_gram
from .method.masks import check_grounding
from .method.refine import compress, concept_sums, concept_texts, difference, stored_rank
from .method.rounds import layers_gram
from .models.entrances import denoiser, kv_weights, pooled_weights
from .models.families import Entry, family_of
from .models.pipelines import check_pipeline, model_hash
from .models.swap import untouched
from .models.text import check_prompt, embedding_size, missing_text, pooled_size
from .show.progress import Bars, say, watched
from .templates import pairs_of

log = logging.getLogger(__name__)
MANY = 10  # concepts from which on general captions alone protect other names badly
FEW = 100  # captions below which a prior protects little


def erase(
    pipe,
    concepts: str | Concept | Mapping[str, str] | Iterable[str | Concept],
    config: EraseConfig | None = None,
    *,
    progress: Progress | Literal[False] | None = None,
    folder: str | Path | None = None,
    prior: priors.Prior | None = None,
    engine=None,
) -> Erasure:
    """Erase concepts from a text-to-image pipeline: stages 1-3 of MACE, Eq. 1-7.

    concepts: "ship" (the anchor is that of the model's own catalogue, which is said), "ship=the sea", a Concept, a list
    of these, or {"ship": "the sea"}. `progress(stage, done, total, detail)` is called as the work goes on; by default
    there are bars in a terminal and in Jupyter, with False none. With a `folder`, training images and LoRAs are
    kept there, and a call that was cut short goes on where it stopped. `prior`: statistics made before.
    `engine` (`macelib.batch.make_engine`): groups of concepts train in processes of their own, here or on a cluster;
    each loads the model, so the pipeline must come from `load_pipeline`.
    `config.stages` leaves stages out: "1" needs no training images, "2" and "1+2" add the LoRAs up (Eq. 6).
    The pipeline is left exactly as it was; `Erasure.apply` writes the result into it. MaceError says what is wrong.
    """
    config, concepts = config or EraseConfig(), listed(concepts, lambda: _suggestions(pipe))
    for note in check(concepts, config, folder, prior, progress, engine):
        log.warning(note)
    check_pipeline(pipe)
    config = _filled(pipe, concepts, config, prior is not None)
    check_kinds(pipe, concepts, config, engine)  # before captions are read, which may take hours
    concepts = [with_companions(with_templates(c, config.templates), config.companions) for c in concepts]
    for text in (text for concept in concepts for text in (*prompts(concept), *anchored(concept))):
        check_prompt(pipe, text)  # refuses one that is too long before the first is read
    with contextlib.ExitStack() as stack:
        tell = progress or (lambda *_: None)
        if progress is None and watched():
            tell = stack.enter_context(Bars())
        stack.enter_context(explained())
        place = Path(folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="macelib-")))
        stack.enter_context(untouched(pipe))
        # Statistics: what every concept's prompts say (X, G, C), and what has to stay as it is (P).
        prior = prior or prior_of(pipe, concepts, config, tell)
        parts, exact = _statistics(pipe, concepts, config, tell)
        erasure = _begun(pipe, parts, prior, config)
        # Stage 1: one map R refines the keys and values of all concepts (Eq. 2).
        truncation = _truncation(erasure, *exact)
        log.info("Stage 1: condition %.3g, residual %.3g", erasure.refinement.condition, erasure.refinement.residual)
        _pooled_note(erasure)
        # Stage 2: images, masks and a LoRA per concept (Eq. 3-5), in groups.
        works, trained = grouped(pipe, erasure, place), {}
        for work, tensors in train_here(pipe, works, tell) if engine is None else train_by(engine, pipe, works, tell):
            for i, concept in enumerate(work.concepts):
                trained[concept.name] = tensors[f"{i}.B"], tensors[f"{i}.D"]
    # Stage 3: `Erasure.fusion` solves Eq. 7 where it is first asked for, and anew when a concept leaves or joins.
    with_lora = [(p, *trained.get(p.concept.name, (p.B, p.D))) for p in parts]
    parts = [dataclasses.replace(p, B=B, D=D) for p, B, D in with_lora]
    done = dataclasses.replace(erasure, parts=tuple(parts), truncation=truncation)
    done.__dict__["_sums"] = erasure._sums  # the LoRAs do not change the statistics
    return done


def _suggestions(pipe) -> Sequence[Entry]:
    """What is known to be drawn by the pipeline, with an anchor each."""
    check_pipeline(pipe)
    catalogue = family_of(pipe).catalogue
    return catalogue() if catalogue else ()


def _filled(pipe, concepts: Sequence[Concept], config: EraseConfig, has_prior: bool) -> EraseConfig:
    """The settings, filled and marked where they are not the preset's; MaceError for what is missing."""
    named = config.preset_name is not None and config.rows is None
    config = config.for_model(pipe, concepts)
    marks = [missing_text(pipe)] + ([] if has_prior else [_captions(pipe, concepts, config)])
    if missing := _detector(concepts, config, named):
        config = dataclasses.replace(config, images=dataclasses.replace(config.images, masks="attention"))
        marks.append(missing)
    marks = [mark for mark in marks if mark and mark not in config.marks]
    config = dataclasses.replace(config, marks=(*config.marks, *marks))
    if config.marks or config.preset_name != "mini":
        say(log, f"Settings: {config.title}.")
    if len(concepts) >= MANY and config.prior.use and not config.prior.domain:
        log.warning(
            "%d concepts go and no name is said to stay: names like theirs may go, too. Say which must stay with "
            "EraseConfig.keeping([...]), or --keep on the command line; for many people there are settings of their "
            "own: the kind celebrity, or --task celebrities.",
            len(concepts),
        )
    return config


def _captions(pipe, concepts: Sequence[Concept], config: EraseConfig) -> str:
    """What is to be said of the prior's captions; MaceError where the preset's are not there."""
    base = family_of(pipe).preset if config.preset_name == "best" else config.preset_name
    if base == "mini" or not _needs_prior(concepts, config):
        return ""
    if config.prior.captions != "coco":
        return f"captions: {config.prior.captions}, so other numbers than the paper's"
    if family_of(pipe).captions is not None:
        return f"captions of {family_of(pipe).name}, so other numbers than the paper's"
    priors.coco_files()
    return ""


def _detector(concepts: Sequence[Concept], config: EraseConfig, named: bool) -> str:
    """What is to be said of the masks; MaceError where a detector that was asked for cannot be loaded."""
    if config.stages == "1" or "grounding" not in {config.mask_source(concept.kind) for concept in concepts}:
        return ""
    try:
        check_grounding()
    except MaceError as error:
        if named:
            raise
        log.warning("%s The model's own attention takes its place.", error)
        return "masks from attention, as the detector cannot be loaded"
    return ""


def _needs_prior(concepts: Sequence[Concept], config: EraseConfig) -> bool:
    """Whether the settings of any concept hold general captions."""
    own = [config.of(concept.kind) for concept in concepts]
    holds = any(c.refine.lambda1 or c.fuse.lambda2 or c.fuse.null_space < 1 for c in own)
    return config.prior.use and config.stages != "2" and holds


def _layers(pipe) -> dict[str, int]:
    """Out features of every to_k and to_v."""
    return {name: w.shape[0] for name, w in kv_weights(denoiser(pipe)).items()}


def _pooled(pipe) -> dict[str, int]:
    """The width of the pooled text by the layer that reads it; empty where none does."""
    return dict.fromkeys(pooled_weights(denoiser(pipe)), pooled_size(pipe))


def _statistics(
    pipe, concepts: Sequence[Concept], config: EraseConfig, tell: Progress
) -> tuple[list[Part], torch.Tensor]:
    """A part without a LoRA for every concept, and the whole sums ΣX, ΣG (2, d, d); MaceError: a prompt too long."""
    layers, d = _layers(pipe), embedding_size(pipe)
    parts, cache, exact = [], {}, torch.zeros(2, d, d, dtype=torch.float64)
    for i, concept in enumerate(concepts):
        texts = concept_texts(pipe, concept, cache)
        X, G, C = (s.cpu() for s in concept_sums(pipe, concept, config.refine.products, texts=texts))
        weight, rank = config.weight(concept.kind), config.training(concept.kind).rank
        exact += weight * torch.stack([X, G])
        statistics = compress(X, G, C, stored_rank(d, [*layers.values()], rank)).to(torch.float32)
        empty = torch.zeros(sum(layers.values()), 0), torch.zeros(len(layers), 0, d)
        pooled = torch.stack([text.pooled.cpu() for text in texts]) if _pooled(pipe) else None  # (2, n, p)
        parts.append(Part(concept, statistics, *empty, pooled, weight))
        tell("statistics", i + 1, len(concepts), concept.name)
    return parts, exact


def _begun(pipe, parts: Sequence[Part], prior: priors.Prior | None, config: EraseConfig) -> Erasure:
    """The erasure before its LoRAs: stage 1 follows from it."""
    P, key, pooled_P = (prior.P, prior.key, prior.pooled) if prior else (None, "", None)
    layers, d, base = _layers(pipe), embedding_size(pipe), model_hash(pipe)
    own = [config.of(part.concept.kind) for part in parts]
    if config.stages == "all":
        null_space(P, min(c.fuse.null_space for c in own))  # refuses one that is empty before anything is trained
    H = layers_gram(denoiser(pipe)) if any(c.refine.rounds for c in own) else None
    return Erasure(tuple(parts), layers, d, base, P, key, config, versions(pipe), _pooled(pipe), pooled_P, H)


def _truncation(erasure: Erasure, X: torch.Tensor, G: torch.Tensor) -> float:
    """How far R is from that of the whole sums; a warning where that is more than a hundredth of what it changes."""
    if erasure.config.stages == "2":
        return 0.0
    found = difference(erasure.refinement.R, erasure.refined(X, G).R)
    if found > 0.01:
        log.warning("What half a megabyte per concept keeps of its statistics is off by %.1f %% of R − I.", 100 * found)
    return found


def _pooled_note(erasure: Erasure) -> None:
    """What the pooled text keeps of every concept; a warning where stage 1 leaves more than half."""
    for name, share in erasure.pooled_left.items():
        loud = share > 0.5 and erasure.config.stages != "2"
        cure = ": lower refine.lambda0 or refine.lambda1" if loud else ""
        said = "The pooled text keeps %.0f %% of what sets %r apart from its anchor%s."
        log.log(logging.WARNING if loud else logging.INFO, said, 100 * share, name, cure)


def prior_of(
    pipe, concepts: Sequence[Concept], config: EraseConfig, tell: Progress = lambda *_: None
) -> priors.Prior | None:
    """The prior that the settings ask for, without the captions that name a concept or a known synonym of one."""
    config = config.for_model(pipe, concepts)
    if not _needs_prior(concepts, config):
        return None
    p, excluded = config.prior, [with_synonyms(concept) for concept in concepts]
    own = p.names if p.tokens == "own" else ()
    captions = priors.captions_for(pipe, p.captions)
    domain = {"domain": p.domain, "names": own, "lambda3": p.lambda3}

    def read(done: int, total: int) -> None:
        tell("captions", done, total, "read once, then kept")

    how = {"named": p.named, "repeats": p.repeats, "progress": read, "beside": (pairs_of(config.companions), p.beside)}
    if p.influence:
        how["influence"] = step_gram(pipe, concepts, config), p.influence
    found = priors.prior(pipe, captions, **domain, exclude=excluded, **how)
    if found.count < FEW:
        log.warning("The prior is made of %d captions: what none of them is about may go, too.", found.count)
    return found
