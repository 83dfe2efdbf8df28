"""Which columns of the text embeddings a closed form reads: last subject tokens, all tokens, means over captions."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..concepts import Concept
from ..errors import MaceError
from ..method.prior import captions_for, names
from ..method.sums import gram
from ..models.entrances import pooled_weights
from ..models.text import encode, tokenizers
from ..models.tokens import occurrences
from ..templates import fill
from .registry import Request

EXPANSION = {
    "object": ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
    "style": ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
}
CHUNK = 64  # captions per pass of the text encoder


def states(pipe, texts: Sequence[str]) -> Tensor:
    """E of each text (n, T, d), float32 on the CPU."""
    return encode(pipe, list(texts)).cpu()


def last_position(pipe, text: str) -> int:
    """Position of the last subject token: the one before the first [EOS]; 0, [SOS], for a text without tokens."""
    return len(tokenizers(pipe)[0](text, verbose=False)["input_ids"]) - 2


def tokens(pipe, texts: Sequence[str], which: Literal["last", "all"]) -> Tensor:
    """Columns of the texts, float64: the last subject token of each (d, n), or all T of each (d, n T)."""
    e = states(pipe, texts).double()
    if which == "last":
        e = e[range(len(texts)), [last_position(pipe, text) for text in texts]][:, None] if len(texts) else e[:, :1]
    return e.flatten(0, 1).T.contiguous()


def expand(name: str, kind: str) -> list[str]:
    """The bare name, and the name in UCE's five templates, which styles have of their own.

    >>> expand("van Gogh", "style")[:2]
    ['van Gogh', 'painting by van Gogh']
    """
    return [name, *(fill(template, name) for template in EXPANSION.get(kind, EXPANSION["object"]))]


def anchors(concept: Concept, anchor: str | None, count: int, expanded: bool) -> list[str]:
    """What each of a concept's `count` texts becomes: one text for all concepts, or (None) its own anchor.

    >>> anchors(Concept("ship", "sea"), "", 2, False), anchors(Concept("ship", "sea"), None, 6, True)[1]
    (['', ''], 'image of sea')
    """
    if anchor is None and expanded:
        return expand(concept.anchor, concept.kind)
    return [concept.anchor if anchor is None else anchor] * count


def preserved(request: Request) -> list[str]:
    """The names to keep that contain no target as a word; where none are given, the model's general captions so.

    MaceError where nothing is left.
    """
    targets = [concept.name for concept in request.concepts]
    texts = list(request.kept) or [c if isinstance(c, str) else c[0] for c in captions_for(request.pipe)]
    free = [text for text in texts if not any(occurrences(text, target) for target in targets)]
    if not free:
        raise MaceError("Nothing is left to preserve: give names to keep that contain none of the concepts.")
    if len(free) < len(texts):
        request.note(f"{len(texts) - len(free)} of {len(texts)} preserved texts contain a concept and are left out.")
    return free


def token_mean(request: Request) -> Tensor:
    """K0 (d, d): the mean of e eᵀ over the unpadded tokens of the model's general captions that name no concept."""
    texts = [c if isinstance(c, str) else c[0] for c in captions_for(request.pipe)]
    texts = [t for t, hit in zip(texts, names(texts, request.concepts), strict=True) if not hit]
    if not texts:
        raise MaceError("No general caption is left that names no concept.")
    total, count = None, 0
    for start in range(0, len(texts), CHUNK):
        some = texts[start : start + CHUNK]
        ends = [last_position(request.pipe, text) + 2 for text in some]
        rows = torch.cat([e[:end] for e, end in zip(states(request.pipe, some), ends, strict=True)])
        total, count = gram(rows, total), count + len(rows)
    return total / count


def note_pooled(request: Request) -> None:
    """Say of a model that reads a pooled text, too, that an edit of cross-attention leaves that as it is."""
    if pooled_weights(request.pipe.unet):
        request.note("The model also reads a pooled text, which stays as it is: cross-attention alone is edited.")


def joined(pipe, words: Sequence[str]) -> tuple[str, list[str]]:
    """The words joined by ", ", as many as the model reads, and those that were cut."""
    tokenizer = tokenizers(pipe)[0]
    kept = len(words)
    while kept and len(tokenizer(", ".join(words[:kept]), verbose=False)["input_ids"]) > tokenizer.model_max_length:
        kept -= 1
    return ", ".join(words[:kept]), list(words[kept:])
