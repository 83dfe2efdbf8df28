"""Notebook 01: which tokens of a prompt carry a concept, how much is left without its own, and after stage 1."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from ..concepts import Concept, align, token_spans
from ..config import EraseConfig
from ..errors import MaceError
from ..job import erase
from ..method.refine import Refinement
from ..models.pipelines import guidance_option
from ..models.text import encode, tokenizers
from ..models.tokens import tokenize
from ..templates import fill, fitted
from . import probabilities
from .shared import fast

GROUPS = ("before", "own", "after", "[EOS]", "padding")  # of a prompt's tokens; [BOS] is in none: it is always the same
PATTERNS = {  # name: template; {} is the concept
    "name alone": "{}",
    "at the end": "a photo of the {}",
    "at the start": "{} on a plain background",
    "possessive": "the {}'s picture",
    "described": "a small red {}",
    "in a place": "a photo of the {} in the snow",
    "in a style": "the {} in the style of pixel art",
    "with another": "the {} and a house",
    "after another": "a house and the {}",
    "named twice": "a {} next to a {}",
}
FRAMES = ("a photo of", "a poster of", "a painting of", "a postcard with", "a drawing of", "a picture of")
TRAILS = ("in the snow", "at sunset", "in the rain", "on a plain background", "in the distance", "in the middle")


@dataclass(frozen=True)
class Case:
    """A prompt that names a concept, in its own words."""

    pattern: str  # "at the end"
    template: str  # "a photo of the {}"
    phrase: str  # what stands for {}: the name, its plural, a synonym
    name: str  # of the concept, as the judge knows it

    @property
    def prompt(self) -> str:
        return fill(self.template, self.phrase)


def cases(concept: Concept) -> list[Case]:
    """The concept in every pattern, and in the first plain one as a plural and under its first synonym."""
    found = [Case(pattern, template, concept.name, concept.name) for pattern, template in PATTERNS.items()]
    found.append(Case("plural", PATTERNS["at the end"], concept.name + "s", concept.name))
    if concept.synonyms:
        found.append(Case("synonym", PATTERNS["at the end"], concept.synonyms[0], concept.name))
    return found


def longer(concept: Concept, where: str, count: int) -> Case:
    """The concept after `count` nested frames ("before"), or before `count` trailing phrases ("after")."""
    words = {"before": FRAMES, "after": TRAILS}.get(where)
    if words is None or not 0 <= count <= len(words):
        raise MaceError(f'{count} phrases {where!r}: give "before" or "after" and 0 to {len(FRAMES)} of them.')
    parts = [*FRAMES[:count], "the {}"] if where == "before" else ["the {}", *TRAILS[:count]]
    return Case(f"{count} {where}", " ".join(parts), concept.name, concept.name)


def groups(tokenizer, prompt: str, phrase: str) -> dict[str, list[int]]:
    """Token positions by group (`GROUPS`): words before the phrase, its own, later words, [EOS], padding.

    MaceError where the prompt does not hold the phrase.
    """
    own = sorted({i for span in token_spans(tokenizer, prompt, phrase) for i in span})
    if not own:
        raise MaceError(f"{prompt!r} does not hold {phrase!r}: give a prompt that names it.")
    ids, offsets = tokenize(tokenizer, prompt)
    words = [i for i, (start, stop) in enumerate(offsets) if start < stop]
    eos, others = words[-1] + 1, sorted(set(words) - set(own))
    before, after = [i for i in others if i < own[0]], [i for i in others if i > own[0]]
    return dict(zip(GROUPS, (before, own, after, [eos], list(range(eos + 1, len(ids)))), strict=True))


Variant = Callable[[Tensor, Tensor, Mapping[str, list[int]]], Tensor]  # e, empty (T, d), groups -> (T, d)


def everything(e: Tensor, empty: Tensor, at: Mapping[str, list[int]]) -> Tensor:
    """The prompt as it is."""
    return e


def residual(e: Tensor, empty: Tensor, at: Mapping[str, list[int]]) -> Tensor:
    """The co-existing words alone: the concept's own tokens replaced by the embedding of [EOS]."""
    out = e.clone()
    out[at["own"]] = e[at["[EOS]"][0]]
    return out


def only(*kept: str) -> Variant:
    """Leave-in: these groups alone, every other token from the empty prompt at the same position."""
    return lambda e, empty, at: _take(empty, e, at, kept)


def without(*left: str) -> Variant:
    """Leave-out: these groups from the empty prompt, every other token as it is."""
    return lambda e, empty, at: _take(e, empty, at, left)


def _take(base: Tensor, other: Tensor, at: Mapping[str, list[int]], names: Sequence[str]) -> Tensor:
    positions, out = [i for name in names for i in at[name]], base.clone()
    out[positions] = other[positions]
    return out


@torch.no_grad()
def draw(
    pipe, e: Tensor, seeds: Sequence[int], R: Tensor | None = None, steps: int = 12,
    guidance: float | None = None, batch: int = 16, progress: Callable | None = None,
) -> list[Image.Image]:  # fmt: skip
    """One picture per row of e (n, T, d) and seed. R (d, d): with W' = W R in place of W, as W' e = W (R e) (Eq. 2).

    guidance: the pipeline's own unless given. SDXL's pooled text embedding is that of the empty prompt, so that the
    tokens alone speak.
    """
    if len(e) != len(seeds):
        raise MaceError(f"There are {len(e)} embeddings and {len(seeds)} seeds: give a seed for each.")
    empty, images = encode(pipe, [""]), []
    if R is not None:
        e, empty = e @ R.T.to(e), empty @ R.T.to(empty)
    pooled = pipe.encode_prompt("", device=pipe.device)[2] if hasattr(pipe, "text_encoder_2") else None
    for start in range(0, len(e), batch):
        some = e[start : start + batch].to(pipe.unet.dtype)
        n = len(some)
        options = {"prompt_embeds": some, "negative_prompt_embeds": empty.to(some).expand(n, -1, -1)}
        options |= {"num_inference_steps": steps, **guidance_option(pipe, guidance)}
        if pooled is not None:
            options |= dict.fromkeys(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), pooled.repeat(n, 1))
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds[start : start + batch]]
        with fast(pipe):
            images += pipe(**options, generator=generators).images
        if progress:
            progress("pictures", len(images), len(e), "")
    return images


def study(
    pipe, judge, cases: Sequence[Case], variants: Mapping[str, Variant], seeds: Sequence[int],
    among: Sequence[str], R: Tensor | None = None, **drawing,
) -> pd.DataFrame:  # fmt: skip
    """Every case, variant and seed drawn and judged: a row each, with the picture and the concept's probability.

    Columns: pattern, name, prompt, length (tokens of the prompt), tokens (the variant), seed, picture, value (0..1).
    """
    tokenizer, rows, states = tokenizers(pipe)[0], [], []
    empty, e = encode(pipe, [""])[0], encode(pipe, [case.prompt for case in cases])
    for case, row in zip(cases, e, strict=True):
        at = groups(tokenizer, case.prompt, case.phrase)
        about = {"pattern": case.pattern, "name": case.name, "prompt": case.prompt, "length": at["[EOS]"][0] - 1}
        for label, variant in variants.items():
            rows += [{**about, "tokens": label, "seed": seed} for seed in seeds]
            states += [variant(row, empty, at)] * len(seeds)
    frame = pd.DataFrame(rows)
    frame["picture"] = draw(pipe, torch.stack(states), frame["seed"].tolist(), R, **drawing)
    frame["value"] = probabilities(judge, frame["picture"].tolist(), frame["name"].tolist(), among).tolist()
    return frame


def refine(pipe, concepts: Sequence[Concept], config: EraseConfig, times: float = 1.0) -> Refinement:
    """Stage 1 (Eq. 2) of all concepts together, as `erase` solves it with these settings, under `times` the prior."""
    made = erase(pipe, concepts, replace(config, stages="1"), progress=False)
    return made.refinement if times == 1 or made.P is None else made.with_prior(times * made.P).refinement


def left(pipe, concepts: Sequence[Concept], R: Tensor | None) -> dict[str, float]:
    """What R leaves of the way from e^f to e^g, by pattern: Σ||R e^f − e^g||² / Σ||e^f − e^g||², mean over concepts."""
    shares: dict[str, list[float]] = {}
    for concept in concepts:
        for case in cases(concept):
            fit = shift(pipe, case, concept.anchor, R)
            shares.setdefault(case.pattern, []).append(fit.square.sum() / fit.whole.sum())
    return {pattern: sum(some) / len(some) for pattern, some in shares.items()}


def shift(pipe, case: Case, anchor: str, R: Tensor | None = None) -> pd.DataFrame:
    """How far each co-existing token is from what it is beside the anchor: ||R e^f − e^g|| / ||e^f||, R = I if None.

    Columns: position, token, group, value; `square` and `whole` are ||R e^f − e^g||² and ||e^f − e^g||².
    An article before {} belongs to the phrase where the anchor brings its own ("the sea").
    """
    tokenizer, template, phrase = tokenizers(pipe)[0], fitted(case.template, case.phrase), case.phrase
    article = re.search(r"\b(the|an?) \{\}", template)
    if article and re.match(r"(the|an?) ", anchor):
        template, phrase = template.replace(article[0], "{}"), f"{article[1]} {phrase}"
    pair = align(tokenizer, template, phrase, anchor)
    f, g = encode(pipe, [template.replace("{}", phrase), template.replace("{}", anchor)]).double()
    f, g = f[pair.source], g[pair.target]
    gap, whole = (f if R is None else f @ R.T.to(f)) - g, (f - g).square().sum(1)
    at = {i: name for name, members in groups(tokenizer, case.prompt, case.phrase).items() for i in members}
    ids = tokenizer(case.prompt, padding="max_length")["input_ids"]
    frame = pd.DataFrame({"position": pair.source.tolist(), "value": (gap.norm(dim=1) / f.norm(dim=1)).tolist()})
    frame["group"] = frame["position"].map(lambda i: at.get(i, "[BOS]"))
    frame["token"] = [
        group if group in ("[BOS]", "[EOS]") else "pad" if group == "padding" else tokenizer.decode([ids[i]]).strip()
        for i, group in zip(frame["position"], frame["group"], strict=True)
    ]
    return frame.assign(square=gap.square().sum(1).tolist(), whole=whole.tolist())
