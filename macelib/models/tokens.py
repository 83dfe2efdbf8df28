"""Where a phrase stands in a prompt, and which token is which in its anchored twin (e^f and e^g of Eq. 1)."""

import re
import unicodedata
from dataclasses import dataclass

import torch
from torch import LongTensor

from ..errors import MaceError
from ..templates import fitted


def occurrences(text: str, phrase: str, plural: bool = False) -> list[tuple[int, int]]:
    """Where the phrase stands in the text as whole words: character spans [start, stop), left to right.

    Capitals, the width of spaces, and composed or decomposed accents do not matter; with `plural`, neither does a
    final s or es. The possessive's 's stays outside.
    """
    return [match.span() for match in phrase_pattern(phrase, plural).finditer(text)]


def phrase_pattern(phrase: str, plural: bool = False) -> re.Pattern:
    """The regular expression behind `occurrences`."""
    composed, parts = unicodedata.normalize("NFC", phrase.strip()), []
    for character in composed:
        forms = {character, unicodedata.normalize("NFD", character)}
        parts.append("|".join(re.escape(form) for form in sorted(forms)))
    body = "".join(r"\s+" if part.strip("\\").isspace() else f"(?:{part})" for part in parts)
    body = re.sub(r"(\\s\+)+", lambda _: r"\s+", body)
    body += "(?:e?s)?" if plural and composed[-1:].isalpha() else ""
    before = r"(?<![^\W_])" if _needs_edge(composed[:1]) else ""
    after = r"(?![^\W_]|[\u0300-\u036f])" if _needs_edge(composed[-1:]) else ""
    return re.compile(before + body + after, re.IGNORECASE)


def _needs_edge(character: str) -> bool:
    """Whether a word can run on beside this character (not so for signs, nor in scripts written without spaces)."""
    return character.isalnum() and unicodedata.east_asian_width(character) not in "WF"


def tokenize(tokenizer, prompt: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids padded to the model's length T and their character offsets (start, stop), empty for special tokens.

    MaceError for a prompt longer than T (nothing is cut) and for a tokenizer without offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise MaceError(
            f"{type(tokenizer).__name__} gives no character offsets: use its fast version (transformers 5 or later)."
        )
    T = tokenizer.model_max_length
    if T > 10**6:
        raise MaceError("The tokenizer does not say how long a prompt may be: set its model_max_length.")
    if re.search("[\ud800-\udfff]", prompt):
        raise MaceError(f"The prompt {_short(prompt)!r} was read or written in another encoding: write it in UTF-8.")
    encoded = tokenizer(prompt, padding="max_length", return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"]
    if len(ids) > T:
        raise MaceError(f"The prompt {_short(prompt)!r} has {len(ids)} tokens and the model reads {T}: shorten it.")
    offsets = []
    for start, stop in encoded["offset_mapping"]:  # some tokenizers count the space before a word as part of it
        text = prompt[start:stop]
        offsets.append((stop - len(text.lstrip()), stop) if text.strip() else (start, stop))
    return ids, offsets


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _tokens_in(offsets: list[tuple[int, int]], start: int, stop: int) -> list[int]:
    """Positions of the tokens that share a character with [start, stop)."""
    return [i for i, (a, b) in enumerate(offsets) if a < b and a < stop and b > start]


def token_spans(tokenizer, prompt: str, phrase: str) -> list[list[int]]:
    """Token positions of every occurrence of the phrase in the prompt, as the text encoder sees them ([BOS] is 0).

    MaceError for a prompt that is too long and for a phrase of which no token is left.
    """
    ids, offsets = tokenize(tokenizer, prompt)
    return [_named(tokenizer, ids, offsets, span, phrase) for span in occurrences(prompt, phrase)]


def _named(tokenizer, ids, offsets, span, phrase) -> list[int]:
    positions = _tokens_in(offsets, *span)
    if not positions or all(ids[i] in tokenizer.all_special_ids for i in positions):
        raise MaceError(f"{phrase!r} cannot be tokenised: its vocabulary knows no part of it; choose another name.")
    return positions


@dataclass(frozen=True)
class Alignment:
    """Which token of the prompt is which token of the anchored prompt."""

    source: LongTensor  # (n,) positions of co-existing tokens in the prompt, [EOS] and padding included
    target: LongTensor  # (n,) positions of the same tokens in the anchored prompt
    own: LongTensor  # (m,) positions of the concept's tokens in the prompt


def align(tokenizer, template: str, name: str, anchor: str) -> Alignment:
    """Pair the co-existing tokens of `template` filled with the name and filled with the anchor (Eq. 1: e^f and e^g).

    Tokens before the phrase pair one to one, tokens after it from the phrase's end, [EOS] and padding in order up to
    the shorter tail; the phrase's tokens are left out on both sides, and so is a token that only one side has, such as
    the article that an anchor like "a person" brings itself.
    MaceError: no "{}", too long, not tokenisable.
    """
    if "{}" not in template:
        raise MaceError(f'The template {template!r} has no "{{}}" where the name goes.')
    prompt, f, own = _segments(tokenizer, template, name)
    _, g, _ = _segments(tokenizer, template, anchor)
    own |= {i for span in token_spans(tokenizer, prompt, name) for i in span}  # the name elsewhere in the template
    shared = [(f[key], g[key]) for key in f if key in g]  # dicts keep order: pairs run from left to right
    pairs = [(i, j) for i, j in shared if i not in own]
    source, target = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    return Alignment(source.contiguous(), target.contiguous(), torch.tensor(sorted(own), dtype=torch.long))


def _segments(tokenizer, template: str, phrase: str) -> tuple[str, dict[tuple, int], set[int]]:
    """The filled template, the positions of its co-existing tokens by what and where they are, and the phrase's tokens.

    Where: characters from the phrase before (or from the start) for words, order for [BOS], and for [EOS] and padding.
    A token that runs from the phrase into its surroundings belongs to the phrase.
    """
    texts = fitted(template, phrase).split("{}")
    prompt = phrase.join(texts)
    ids, offsets = tokenize(tokenizer, prompt)
    starts = [sum(map(len, texts[: n + 1])) + n * len(phrase) for n in range(len(texts) - 1)]
    own = {i for at in starts for i in _named(tokenizer, ids, offsets, (at, at + len(phrase)), phrase)}
    last = max(i for i, (a, b) in enumerate(offsets) if a < b)
    others: dict[tuple, int] = {}
    for i in sorted(set(range(len(ids))) - own):
        start, stop = offsets[i]
        piece = sum(at < stop for at in starts)  # how many phrases stand before it
        from_here = starts[piece - 1] + len(phrase) if piece else 0
        if start == stop:
            key = ("tail", i - last) if i > last else ("head", i)
        else:
            key = (piece, start - from_here, stop - from_here, ids[i])
        while key in others:  # the second byte of one character
            key = (*key, "again")
        others[key] = i
    return prompt, others, own
