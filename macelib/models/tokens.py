"""Where a phrase stands in a prompt, and which token is which in its anchored twin (e^f and e^g of Eq. 1)."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

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


MASKED = (-1, -1)  # the offsets of padding that nobody reads


@dataclass(frozen=True, eq=False)
class View:
    """A tokenizer as a pipeline reads with it, where that is not as the tokenizer itself would."""

    tokenizer: object
    length: int  # T of what the model keeps
    prepare: Callable[[str], str] = str  # what the pipeline makes of a prompt first
    before: str = ""  # an instruction that it puts before the prompt; of its tokens, [BOS] and the last T - 1 are kept
    masked: bool = False  # padding is masked: it is read by nobody and counts nowhere
    at: int = 0  # position of the first of its tokens among all that the model reads

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that stand for no text."""
        return self.tokenizer.all_special_ids

    def read(self, prompt: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `tokenize`, with offsets in the prepared prompt, and `MASKED` where padding is masked."""
        text, kept = self.before + self.prepare(prompt), [*range(self.length)]
        if self.before:
            cut = _count(self.tokenizer, self.before) - 2
            kept = [0, *range(1 + cut, self.length + cut)]
        options = {"padding": "max_length", "max_length": kept[-1] + 1, "padding_side": "right"}
        found = self.tokenizer(text, return_offsets_mapping=True, verbose=False, **options)
        _check_length(prompt, len(found["input_ids"]) - kept[-1] - 1 + self.length, self.length)
        offsets = [_without_space(text, *span) for span in found["offset_mapping"]]
        n = len(self.before)
        offsets = [(max(a, n) - n, b - n) if b > n else (0, 0) for a, b in offsets]
        if self.masked:
            offsets = [span if real else MASKED for span, real in zip(offsets, found["attention_mask"], strict=True)]
        return [found["input_ids"][i] for i in kept], [offsets[i] for i in kept]


@lru_cache(maxsize=4)
def _count(tokenizer, text: str) -> int:
    """How many tokens a text has, special ones included."""
    return len(tokenizer.encode(text))


def prepared(tokenizer, prompt: str) -> str:
    """The prompt in whose characters the offsets of `tokenize` count."""
    return tokenizer.prepare(prompt) if isinstance(tokenizer, View) else prompt


def fits(tokenizer, prompt: str) -> bool:
    """Whether the model reads the prompt to its end."""
    if not isinstance(tokenizer, View):
        return len(tokenizer(prompt, verbose=False)["input_ids"]) <= tokenizer.model_max_length
    try:
        tokenizer.read(prompt)
    except MaceError:
        return False
    return True


def length(tokenizer) -> int:
    """T: how many positions the model reads with this tokenizer."""
    return tokenizer.length if isinstance(tokenizer, View) else tokenizer.model_max_length


def _check_length(prompt: str, count: int, T: int) -> None:
    if count > T:
        raise MaceError(f"The prompt {_short(prompt)!r} has {count} tokens and the model reads {T}: shorten it.")


def _without_space(text: str, start: int, stop: int) -> tuple[int, int]:
    """A token's span without the space before it, which some tokenizers count as part of it."""
    part = text[start:stop]
    return (stop - len(part.lstrip()), stop) if part.strip() else (start, stop)


def tokenize(tokenizer, prompt: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids padded to the model's length T and their character offsets (start, stop), empty for special tokens.

    tokenizer: of a pipeline, or a `View`. MaceError for a prompt longer than T (nothing is cut) and for a tokenizer
    without offsets.
    """
    inner = tokenizer.tokenizer if isinstance(tokenizer, View) else tokenizer
    if not getattr(inner, "is_fast", False):
        raise MaceError(
            f"{type(inner).__name__} gives no character offsets: use its fast version (transformers 5 or later)."
        )
    if re.search("[\ud800-\udfff]", prompt):
        raise MaceError(f"The prompt {_short(prompt)!r} was read or written in another encoding: write it in UTF-8.")
    if isinstance(tokenizer, View):
        return tokenizer.read(prompt)
    T = tokenizer.model_max_length
    if T > 10**6:
        raise MaceError("The tokenizer does not say how long a prompt may be: set its model_max_length.")
    encoded = tokenizer(prompt, padding="max_length", return_offsets_mapping=True, verbose=False)
    _check_length(prompt, len(encoded["input_ids"]), T)
    return encoded["input_ids"], [_without_space(prompt, *span) for span in encoded["offset_mapping"]]


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
    text = prepared(tokenizer, prompt)
    return [_named(tokenizer, ids, offsets, span, phrase) for span in occurrences(text, phrase)]


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


def tail(tokenizer, prompt: str) -> list[int]:
    """Positions of [EOS] and padding, where that is read."""
    _, offsets = tokenize(tokenizer, prompt)
    last = max((i for i, (a, b) in enumerate(offsets) if a < b), default=0)
    return [i for i, span in enumerate(offsets) if i > last and span != MASKED]


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
    if (cleaned := prepared(tokenizer, prompt)).casefold() != prompt.casefold():
        raise MaceError(f"The pipeline makes {cleaned!r} of {prompt!r} before it reads it: leave out what it changes.")
    ids, offsets = tokenize(tokenizer, prompt)
    starts = [sum(map(len, texts[: n + 1])) + n * len(phrase) for n in range(len(texts) - 1)]
    own = {i for at in starts for i in _named(tokenizer, ids, offsets, (at, at + len(phrase)), phrase)}
    last = max(i for i, (a, b) in enumerate(offsets) if a < b)
    others: dict[tuple, int] = {}
    for i in sorted(set(range(len(ids))) - own):
        start, stop = offsets[i]
        if (start, stop) == MASKED:
            continue
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
