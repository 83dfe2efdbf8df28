"""The prior P = Σ e^p e^pᵀ (Eq. 1-2, 7): statistics of captions to keep, cached, without those that name a concept."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from ..concepts import Concept, folded
from ..errors import MaceError
from ..files import cache_folder, data_folder, hash_text, read_cached, save_tensors
from ..models.families import family_of
from ..models.text import embedding_size, pooled_size, prompt_fits, read, spans, text_hash, text_length
from ..models.tokens import phrase_pattern
from .captions import Captions, read_captions
from .influence import influences
from .refine import symmetric
from .sums import gram

log = logging.getLogger(__name__)
CHUNK = 64  # captions per pass of the text encoder
GENERAL = [
    f"{picture} {thing}"
    for picture in ("a photo of", "a painting of", "a close-up of", "a drawing of")
    for thing in (
        "a man with a hat", "a woman with a book", "two children in a park", "a crowd in a street", "a quiet village",
        "a city at night", "a kitchen with a wooden table", "a bedroom with a window", "a bowl of fruit",
        "bread and cheese", "a cup of coffee", "a birthday cake", "flowers in a vase", "an old tree", "a green valley",
        "mountains with snow", "a river and a bridge", "a beach in summer", "clouds over a field", "a small garden",
        "a dog and a cat", "birds on a roof", "a horse behind a fence", "fish in the water", "a red car",
        "a train at a station", "a boat near the shore", "an airplane in the sky", "a bicycle at a wall", "a clock",
        "a chair and a lamp", "a guitar", "a laptop on a desk", "a pair of shoes", "a football match", "a castle",
    )
]  # fmt: skip


COCO = ("captions_train2014.json", "captions_val2014.json")
COCO_FROM = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"


@dataclass(frozen=True)
class Prior:
    """Statistics of what an erasure must preserve."""

    P: Tensor  # (d, d) float64: P_general + λ3 P_domain + w P_beside, each the mean over its captions of Σ e eᵀ
    key: str  # of the text encoder, the captions used and λ3
    count: int  # captions used, general and domain
    pooled: Tensor | None = None  # (p, p) float64: the same of the pooled text, a row per caption; None: none is read


def prior(
    pipe,
    captions: Captions,
    domain: Captions = (),
    lambda3: float = 1.0,
    exclude: Sequence[Concept] = (),
    names: Sequence[str] = (),
    named: str = "left out",
    repeats: bool = False,
    progress: Callable[[int, int], None] | None = None,
    beside: tuple[Sequence[str], float] = ((), 0.0),
    influence: tuple[Tensor | None, float] = (None, 0.0),
) -> Prior:
    """P = P_general + λ3 P_domain + w P_beside per caption: λ1 means "as much as λ1 captions"; float64 on the CPU.

    captions, domain: texts, or a file (see `read_captions`); each distinct one counts once, or, with `repeats`, those
    of `captions` as often as they stand there. What a caption is about, one label or several, may come with it as
    (text, labels). A caption is left out where it or a label of it names an excluded concept: by name or synonym, as a
    whole word, plural included, in any capitals; `named` "kept" leaves those of `captions` in. All are read once, those
    that are left out once more, by first label, and subtracted; both are cached in `cache_folder()/prior`.
    names: of the domain captions, only the tokens of these phrases count (none: all tokens). A name is then kept as it
    is, while [EOS] and padding, where names that stay are hard to tell from those that go, are free to follow the rest.
    The pooled text has no tokens: all of it counts. beside: prompts of two things that stay, and w.
    influence: A of `step_gram`, and the share of the captions' mean influence below which one is left out; 0: none. It
    takes a reading of all captions of its own: which of them count is known when the last one is read, and what SD v1.4
    reads of COCO's until then takes 146 GB.
    progress(done, total) is told how many general captions are read, where none were kept.
    MaceError where no caption is left, or a domain caption has none of the names.
    """
    if lambda3 < 0:
        raise MaceError(f"λ3 = {lambda3:g} must not be negative: it is the weight of the domain captions.")
    base = text_hash(pipe)
    stay = {folded(name) for name in names}  # a known synonym that is kept does not go
    exclude = [replace(c, synonyms=tuple(s for s in c.synonyms if folded(s) not in stay)) for c in exclude]
    excluded = exclude if named == "left out" else ()
    told = {"repeats": repeats, "progress": progress}
    captions = read_captions(captions)
    if influence[1]:
        captions = _influential(pipe, captions, excluded, *influence, progress)
    general, kept, count = _statistics(pipe, base, captions, excluded, **told)
    if not count:
        raise MaceError("No caption is left for the prior: give captions that do not name the concepts to erase.")
    P, parts = general / count, [base, *kept]
    domain = read_captions(domain)
    if too_long := next((text for text, _ in map(_pair, domain) if not prompt_fits(pipe, text)), None):
        raise MaceError(
            f"The prompt to keep {too_long!r} is longer than the model reads: shorten it, or the name in it."
        )
    special, kept, extra = _statistics(pipe, base, domain, exclude, tuple(names))
    if left_out := [text for text, _ in map(_pair, domain) if text not in set(kept)]:
        log.warning(
            "%d prompts to keep name what is erased (%r, ...) and are left out: say names to keep as such, in "
            "EraseConfig.keeping([...]), --keep or prior.names.",
            len(left_out),
            left_out[0],
        )
    if extra and lambda3:
        P, parts = P + lambda3 * special / extra, [*parts, f"λ3={lambda3:.17g}", *kept, *names]
    pairs, kept, two = _statistics(pipe, base, list(beside[0]), exclude) if beside[1] else (0.0, [], 0)
    if two:
        P, parts = P + beside[1] * pairs / two, [*parts, f"beside={beside[1]:.17g}", *kept]
    tokens, pooled = _unpacked(pipe, P)
    return Prior(tokens, hash_text(*parts), count + extra, pooled)


def captions_for(pipe, source: str | None = None) -> Captions:
    """General captions for `prior`: "builtin", "coco", or a file.

    "builtin" (and None): those of the model's family, with what they are about; else a short list. "coco": the captions
    of COCO 2014, train and val, where `coco_files` are; a family that has captions of its own draws no others, and they
    stand in their place. MaceError: COCO's captions are nowhere.
    """
    own = family_of(pipe).captions
    if source not in (None, "builtin", "coco"):
        return source
    if own is not None:
        return list(own())
    if source == "coco":
        return coco_captions()
    log.warning("The prior uses %d built-in captions: a file of COCO's captions protects far more.", len(GENERAL))
    return list(GENERAL)


def coco_captions() -> list[str]:
    """COCO 2014's captions, train and val, as they stand there; MaceError where `coco_files` finds none."""
    return [caption for path in coco_files() for caption in read_captions(path)]


def coco_files() -> list[Path]:
    """COCO 2014's two caption files, in the working folder, or in `coco` in the data or the cache folder.

    MaceError where one is in none of them: where people get it, what it costs, and the way on.
    """
    places = [Path.cwd(), data_folder() / "coco", cache_folder() / "coco"]
    found = [next((place / name for place in places if (place / name).is_file()), None) for name in COCO]
    if missing := [name for name, path in zip(COCO, found, strict=True) if path is None]:
        raise MaceError(
            f"The paper's prior needs {' and '.join(missing)}, COCO 2014's captions: in none of "
            f"{', '.join(map(str, places))}. They come from {COCO_FROM} (241 MB). Reading all 616,767 takes about "
            "15 hours on two cores, minutes on a GPU, once for each model. The way on without them: --captions builtin "
            '(prior.captions: "builtin"), or a file of your own; the numbers are then other ones than the paper\'s.'
        )
    return found


def names(captions: Sequence[str], concepts: Sequence[Concept], kept: Sequence[str] = ()) -> list[bool]:
    """Which captions name one of the concepts, by name or synonym; "teddy bear", where it is kept, names no bear."""
    phrases = {phrase for concept in concepts for phrase in (concept.name, *concept.synonyms)}
    patterns = [phrase_pattern(phrase, plural=True) for phrase in sorted(phrases)]
    goes = {folded(concept.name) for concept in concepts}
    held = [phrase_pattern(name) for name in kept if folded(name) not in goes]
    return [_named(caption, patterns, held) for caption in captions]


def _named(caption: str, patterns: Sequence[re.Pattern], held: Sequence[re.Pattern]) -> bool:
    """Whether one of the patterns is found outside of what is held."""
    spans = [match.span() for pattern in patterns for match in pattern.finditer(caption)]
    kept = [match.span() for pattern in held for match in pattern.finditer(caption)] if spans else []
    return any(not any(a <= start and stop <= b for a, b in kept) for start, stop in spans)


def _pair(caption: str | tuple[str, str | Sequence[str]]) -> tuple[str, tuple[str, ...]]:
    """A caption and its labels."""
    text, labels = (caption, ()) if isinstance(caption, str) else caption
    return text, (labels,) if isinstance(labels, str) else tuple(map(str, labels))


def _influential(pipe, captions, exclude, A: Tensor, least: float, progress) -> list[str]:
    """Captions that name nothing excluded, without those of less than `least` times their mean influence."""
    pairs = [_pair(caption) for caption in captions]
    hits = names(["\n".join((text, *labels)) for text, labels in pairs], exclude)
    named = {text for (text, _), hit in zip(pairs, hits, strict=True) if hit}
    texts = [text for text in dict.fromkeys(text for text, _ in pairs) if text not in named and prompt_fits(pipe, text)]
    found = influences(pipe, texts, A, progress)
    stay = {text for text, stays in zip(texts, found >= least * found.mean(), strict=True) if stays}
    return [text for text, _ in pairs if text in stay]


def _statistics(
    pipe, base, captions, exclude, own=(), repeats: bool = False, progress=None
) -> tuple[Tensor, list[str], int]:
    """`_grams` over the distinct captions that name nothing excluded in one row, those captions, and their number.

    All of them are read once; what names something excluded is read once more, by first label, and subtracted.
    own: phrases whose tokens alone count; none: all tokens. repeats: a caption counts as often as it is there.
    """
    captions, about = [_pair(caption) for caption in captions], {}
    for caption, group in captions:
        about[caption] = (*about.get(caption, ()), *group)
    times = Counter(caption for caption, _ in captions) if repeats else dict.fromkeys(about, 1)
    read_whole = sorted(caption for caption in about if prompt_fits(pipe, caption))
    if len(read_whole) < len(about):
        log.warning("%d captions are longer than the model reads: left out of the prior.", len(about) - len(read_whole))
    hits = names(["\n".join((caption, *about[caption])) for caption in read_whole], exclude, own)
    kept = [c for c, hit in zip(read_whole, hits, strict=True) if not hit for _ in range(times[c])]
    if not kept:
        return 0.0, [], 0
    strays = [(next(iter(about[c]), ""), c) for c, hit in zip(read_whole, hits, strict=True) if hit]
    rows = _grams(pipe, base, sorted(((times[c], ""), c) for c in read_whole), own, progress)
    less = _grams(pipe, base, sorted(((times[c], label), c) for label, c in strays), own)
    total = sum(n * row for (n, _), row in rows.items()) - sum(n * row for (n, _), row in less.items())
    return total, kept, len(kept)


def _unpacked(pipe, row: Tensor) -> tuple[Tensor, Tensor | None]:
    """P (d, d) of the tokens and P (p, p) of the pooled text from a row of `_grams`; None where none is read."""
    d, p = embedding_size(pipe), pooled_size(pipe)
    tokens, pooled = row.split([d * (d + 1) // 2, p * (p + 1) // 2])
    return symmetric(tokens, d), symmetric(pooled, p) if p else None


def _counted(pipe, captions: Sequence[str], own: Sequence[str]) -> Tensor:
    """(n, T) bool: which tokens are of one of the phrases; all of them where there are no phrases."""
    counted = torch.full((len(captions), text_length(pipe)), not own)
    patterns = [(phrase, phrase_pattern(phrase)) for phrase in own]
    for row, caption in zip(counted, captions, strict=True):
        for phrase in (phrase for phrase, pattern in patterns if pattern.search(caption)):
            row[spans(pipe, caption, phrase)] = True
    if not counted.any(1).all():
        caption = captions[int((~counted.any(1)).nonzero()[0])]
        raise MaceError(f"The domain caption {caption!r} has none of the names to keep: leave it, or the names, out.")
    return counted


def _grams(
    pipe,
    base: str,
    pairs: list[tuple[tuple[int, str], str]],
    own: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[int, str], Tensor]:
    """Upper triangles (d (d + 1) / 2,) of Σ e eᵀ, float64, by group of sorted (group, caption) pairs; each is cached.

    After it, in the same row, that of the pooled text (p (p + 1) / 2,), where the model reads one. A group is read by
    itself, whatever else is read, so that its row is the same to the bit. Rows of shipped captions may be shipped, too.
    """
    d, p, rows, done = embedding_size(pipe), pooled_size(pipe), {}, 0
    upper, beside = tuple(torch.triu_indices(d, d)), tuple(torch.triu_indices(p, p))
    for group, members in groupby(pairs, key=lambda pair: pair[0]):
        captions = [caption for _, caption in members]
        key = hash_text(base, len(own), *own, *captions, p)
        files = [folder / "prior" / f"{key}.safetensors" for folder in (cache_folder(), data_folder())]
        if (kept := next(filter(None, (read_cached(file, key) for file in files)), None)) is not None:
            rows[group] = kept["upper"].flatten()
            continue
        rows[group] = torch.zeros(len(upper[0]) + len(beside[0]), dtype=torch.float64)
        for start in range(0, len(captions), CHUNK):
            chunk = captions[start : start + CHUNK]
            text, counted = read(pipe, chunk, CHUNK), _counted(pipe, chunk, own)  # (n, T, d), (n, T)
            e = text.tokens[counted.to(text.tokens.device)]  # (m, d)
            e = e[e.any(1)]  # without padding that is masked
            rows[group] += torch.cat([gram(e).cpu()[upper], gram(text.pooled).cpu()[beside]])
            done += len(chunk)
            if progress:
                progress(done, len(pairs))
        save_tensors(files[0], {"upper": rows[group][None]}, {"key": key})  # a table of one row
    return rows
