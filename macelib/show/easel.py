"""Drawing with concepts taken out and put back: what the studio shows, remembered, and no widgets.

A concept is left out by `Erasure.only` and weakened by `Erasure.scaled`: the fusion is solved anew (Eq. 7) and written
into the model. Nothing is trained again.
"""

import contextlib
import inspect
import logging
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from .. import __version__
from ..concepts import Concept
from ..config import EraseConfig
from ..erasure import Erasure
from ..errors import MaceError
from ..files import cache_folder, hash_text
from ..job import erase
from ..models.attention import trace
from ..models.pipelines import AUTOCAST, cast, check_pipeline, default_guidance, fast_precision, model_hash
from ..models.sample import generate
from ..models.swap import untouched
from ..models.text import tokenizers
from ..models.tokens import occurrences, token_spans, tokenize
from . import viz

log = logging.getLogger(__name__)
MOST = 8  # pictures at once
DRAWN = ("before", "after")  # rows of pictures by the model
Tell = Callable[[int, int], None]  # done, total
_lock = threading.RLock()  # a page is served by threads of its own: one drawing or training at a time


@contextlib.contextmanager
def alone(tell: Tell | None = None) -> Iterator[None]:
    """With the models to oneself; while others have them, `tell(0, 1)` is called now and then, and may raise."""
    while not _lock.acquire(timeout=0.2):
        if tell:
            tell(0, 1)
    try:
        yield
    finally:
        _lock.release()


def prepared(
    pipe, concepts: Sequence[Concept], config: EraseConfig | None = None, progress=None, folder: Path | None = None
) -> Erasure:
    """The erasure of these concepts: read where it was made before with this model and these settings, else made.

    It is kept in `folder` (the cache), by the content of model, concepts and settings; a call cut short goes on.
    """
    config, folder = (config or EraseConfig()).for_model(pipe, concepts), Path(folder or cache_folder() / "studio")
    files = [Path(config.prior.captions or "")]
    captions = [file.read_bytes() for file in files if file.is_file()]
    key = hash_text(__version__, model_hash(pipe), list(concepts), config, captions)[:16]
    path, work, locks = folder / f"{key}.safetensors", folder / f"{key}-work", folder / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{key}.lock"):  # a second process waits, and then finds it made
        if path.exists():
            try:
                return Erasure.load(path)
            except MaceError as error:
                log.warning("%s It is made anew.", error)
        erasure = erase(pipe, concepts, config, progress=progress, folder=work)
        erasure.save(path)
        shutil.rmtree(work, ignore_errors=True)
        return erasure


@dataclass(frozen=True)
class Drawing:
    """Pictures of one prompt, a seed each, and where they look."""

    images: list[Image.Image]
    heat: Tensor  # (n, words, h, w), attention of each of `Easel.words`, on the CPU


class Easel:
    """Draws with a pipeline and an erasure made for it, and remembers the last drawings; the pipeline is left alone.

    autocast: None (as loaded), "bf16" or "fp16"; "auto": "bf16" where that is faster.
    """

    def __init__(
        self, pipe, erasure: Erasure, steps: int = 15, guidance: float | None = None, keep: int = 48, autocast=None
    ):
        if autocast not in (None, "auto", *AUTOCAST):
            raise MaceError(f"autocast is {autocast!r}; allowed: None, auto, {', '.join(AUTOCAST)}.")
        check_pipeline(pipe)
        self.autocast = fast_precision(pipe) if autocast == "auto" else autocast
        erasure.check(pipe)
        guidance = own_guidance(pipe) if guidance is None else guidance
        self.pipe, self.erasure, self.steps, self.guidance, self.keep = pipe, erasure, steps, guidance, keep
        self._known: OrderedDict[tuple, Drawing] = OrderedDict()

    def words(self, prompt: str) -> dict[str, list[int]]:
        """What can be looked up: token positions by label, for every token and word, concepts' phrases, the padding.

        MaceError for a prompt that is too long.
        """
        tokenizer = tokenizers(self.pipe)[0]
        ids, offsets = tokenize(tokenizer, prompt)
        found: dict[str, list[int]] = {}
        for concept in self.erasure.concepts:
            for span in token_spans(tokenizer, prompt, concept.name) if occurrences(prompt, concept.name) else []:
                found.setdefault(concept.name, []).extend(span)
        last = max((i for i, (a, b) in enumerate(offsets) if a < b), default=0)
        words = {}  # of several tokens, by the last of them
        for match in re.finditer(r"\w+", prompt):
            if len(at := [i for i, (a, b) in enumerate(offsets) if match.start() <= a < b <= match.end()]) > 1:
                words[at[-1]] = match.group(), at
        for i, (a, b) in enumerate(offsets[: last + 1]):
            label = prompt[a:b] or "[start]"
            if found.get(label) != [i]:
                found[label if label not in found else f"{label} ({i})"] = [i]
            if i in words:
                found.setdefault(*words[i])
        found["[end]"] = [last + 1]
        return found | ({"[padding]": list(range(last + 2, len(ids)))} if last + 2 < len(ids) else {})

    def adopt(self, erasure: Erasure) -> None:
        """Go on with another erasure for the same pipeline; what was drawn with the one before is forgotten."""
        erasure.check(self.pipe)
        with alone():
            self.erasure = erasure
            self._known.clear()

    def draw(
        self,
        prompt: str,
        seeds: Sequence[int],
        strengths: Mapping[str, float] | None = None,
        tell: Tell | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Drawing:
        """The drawing with these concepts erased (none: the original model), at a strength from 0 (as before) to 1.

        steps, guidance: the easel's own unless given. `tell(done, total)` follows each step; what it raises stops it.
        """
        active = {name: float(s) for name, s in (strengths or {}).items() if s}
        steps, guidance = steps or self.steps, self.guidance if guidance is None else guidance
        key = (prompt, tuple(seeds), steps, guidance, *sorted(active.items()))
        with alone(tell):
            if key not in self._known:
                with untouched(self.pipe):
                    if active:
                        some = self.erasure.only(list(active)).scaled(active)
                        some.apply(self.pipe, force=True)  # the base was checked at the start
                    self._known[key] = self._draw(prompt, seeds, steps, guidance, tell)
            self._known.move_to_end(key)
            while len(self._known) > self.keep:
                self._known.popitem(last=False)
            return self._known[key]

    def _draw(self, prompt: str, seeds: Sequence[int], steps: int, guidance: float, tell: Tell | None) -> Drawing:
        def step(_, i, t, values):
            if tell:
                tell(i + 1, steps)
            return values

        words, options = self.words(prompt), {"batch": MOST, "callback_on_step_end": step}
        with trace(self.pipe) as maps, cast(self.pipe, self.autocast):
            images = generate(self.pipe, prompt, seeds, steps, guidance, **options)
        return Drawing(images, torch.stack([maps.map(p, image=None).float().cpu() for p in words.values()], 1))

    def rows(
        self,
        prompt: str,
        seeds: Sequence[int],
        strengths: Mapping[str, float],
        word: str,
        tell: Tell | None = None,
        beside: str = "",
        **how,
    ) -> dict[str, list[Image.Image]]:
        """Pictures by row: before, after, their difference, and the attention of a word before and after.

        The difference is |after − before|; both attention rows have one scale, from 0 to the largest value of the two.
        beside: a second prompt, of which before and after follow the first's; empty: none. `tell` counts the steps of
        all. how: steps and guidance of `draw`.
        """
        texts = [prompt, beside] if beside.strip() else [prompt]
        wanted = [(text, some) for text in texts for some in (None, strengths)]
        before, after, *others = (
            self.draw(text, seeds, some, _part(tell, i, len(wanted)), **how) for i, (text, some) in enumerate(wanted)
        )
        w = list(self.words(prompt)).index(word)
        highest = float(max(before.heat[:, w].max(), after.heat[:, w].max())) or 1.0
        changed = [
            _picture(abs(viz.pixels(a) - viz.pixels(b))) for a, b in zip(after.images, before.images, strict=True)
        ]
        rows = {"before": before.images, "after": after.images}
        rows |= {f"{row}: {beside}": other.images for row, other in zip(DRAWN, others, strict=False)}
        rows["difference"] = changed
        for label, drawing in (("before", before), ("after", after)):
            pairs = zip(drawing.images, drawing.heat[:, w], strict=True)
            rows[f"“{word}”, {label}"] = [_overlay(image, heat / highest) for image, heat in pairs]
        return rows


def drawn(rows: Mapping[str, Sequence]) -> list[str]:
    """The labels of rows that the model drew: before and after, in pairs; a second prompt's have it behind a colon."""
    return [row for row in rows if row.partition(": ")[0] in DRAWN]


def _part(tell: Tell | None, i: int, n: int) -> Tell | None:
    """`tell` for the i-th of n works of one size; nothing done means waiting, in each of them."""
    return tell and (lambda done, total: tell(done and i * total + done, n * total))


def own_guidance(pipe) -> float:
    """The guidance scale that a pipeline draws with unless one is given."""
    own = default_guidance(pipe)
    return inspect.signature(pipe.__call__).parameters["guidance_scale"].default if own is None else own


def difference(one: Drawing, other: Drawing) -> float:
    """Mean absolute difference of the pixels, 0..1."""
    pairs = zip(one.images, other.images, strict=True)
    return float(np.mean([abs(viz.pixels(a) - viz.pixels(b)).mean() for a, b in pairs]))


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def _overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """A map (h, w) in 0..1 laid over the grey picture."""
    large = Image.fromarray(heat.numpy()).resize(image.size, Image.Resampling.BILINEAR)
    grey = viz.pixels(image).mean(-1, keepdims=True)
    return _picture(0.35 * grey + 0.65 * colormaps[viz.HEAT](np.asarray(large))[..., :3])
