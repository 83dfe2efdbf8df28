"""The studio: a page on which concepts are ticked on and off, beside the pictures that the model then draws.

The controls are widgets, the drawing is `macelib.show.easel`'s; the logic needs no browser.
"""

import asyncio
import logging
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ipywidgets as widgets

from ..errors import MaceError, explained
from . import viz
from .easel import MOST, Easel
from .page import STYLE, gallery, message

log = logging.getLogger(__name__)
PAUSE = 0.08  # seconds of rest before drawing, in which further changes are gathered
BATCH = "MACELIB_RUN_FOLDER"  # environment variable of a batch run, which has no page
_open: "weakref.WeakSet[Studio]" = weakref.WeakSet()


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0, 1, 5-7" as (0, 1, 5, 6, 7); MaceError for anything else, for a seed twice, and for more than MOST."""
    seeds: list[int] = []
    try:
        for part in text.replace(",", " ").split():
            first, _, last = part.partition("-")
            seeds += range(int(first), min(int(last or first), int(first) + MOST) + 1)
    except ValueError:
        seeds = []
    if not 0 < len(seeds) <= MOST or len(set(seeds)) < len(seeds) or max(seeds) >= 2**63:
        raise MaceError(f'The seeds are {text!r}; allowed: 1 to {MOST} different whole numbers, such as "0, 1, 5-7".')
    return tuple(seeds)


class Studio:
    """The page: the last value of a cell. A new one for the same pipeline takes the place of the one before.

    `error` is the sentence that is shown in the page, or empty; `seconds` is what the last reaction took.
    """

    def __init__(self, easel: Easel, prompt: str, seeds: Sequence[int] = (0, 1, 2, 3)):
        for old in [studio for studio in _open if studio.easel.pipe is easel.pipe]:
            old.close()
        _open.add(self)
        self.easel, self.error, self.seconds = easel, "", 0.0
        self._timer, self._quiet, self._closed = None, False, False
        lazy = {"continuous_update": False}
        self.prompt = widgets.Text(
            prompt, description="prompt", layout={"flex": "1 1 20em", "max_width": "46em"}, **lazy
        )
        self.seeds = widgets.Text(", ".join(map(str, seeds)), description="seeds", **lazy)
        self.others = widgets.Button(description="other seeds", tooltip="as many seeds, after these")
        self.word = widgets.Dropdown(description="attention of")
        self.all, self.none = (widgets.Button(description=f"erase {label}") for label in ("all", "none"))
        self.ticks, self.sliders = {}, {}
        for part in easel.erasure.parts:
            name, label = part.concept.name, f"{part.concept.name} → {part.concept.anchor}"
            self.ticks[name] = widgets.Checkbox(True, description=label, indent=False, layout={"width": "16em"})
            scale = {"min": 0.0, "max": 1.0, "step": 0.05, "description": "strength"}
            self.sliders[name] = widgets.FloatSlider(min(part.strength, 1.0), **scale, **lazy)
        self.status, self.picture = widgets.HTML(), widgets.HTML()
        self.bar = widgets.IntProgress(0, max=easel.steps, layout={"width": "8em", "visibility": "hidden"})
        self.box = self._layout()
        self._controls = (self.prompt, self.seeds, self.word, *self.ticks.values(), *self.sliders.values())
        for widget in self._controls:
            widget.observe(self._changed, "value")
        for button, action in ((self.others, self._next_seeds), (self.all, self._tick), (self.none, self._tick)):
            button.on_click(action)
        self.update()

    def _layout(self) -> widgets.VBox:
        lines = [widgets.HBox([self.ticks[name], self.sliders[name]]) for name in self.ticks]
        concepts = widgets.VBox(lines, layout={"max_height": "16em", "overflow": "auto", "flex": "0 0 auto"})
        rows = ([self.prompt], [self.seeds, self.others, self.word], [self.all, self.none], [self.status, self.bar])
        head = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        box = widgets.VBox([widgets.HTML(STYLE), *head[:3], concepts, head[3], self.picture])
        box.add_class("macelib-studio")
        return box

    @property
    def strengths(self) -> dict[str, float]:
        """Strength by name of the concepts that are ticked."""
        return {name: self.sliders[name].value for name, tick in self.ticks.items() if tick.value}

    def update(self) -> None:
        """Draw what the controls say. An error is shown in the page, above the pictures that were there before."""
        if self._closed:
            return
        start, self._timer, self.error, stopped = time.perf_counter(), None, "", False
        self.status.value, self.bar.layout.visibility = message("drawing …"), "visible"
        self.picture.add_class("macelib-busy")
        try:
            with explained():
                seeds = parse_seeds(self.seeds.value)
                self._offer(self.easel.words(self.prompt.value))
                rows = self.easel.rows(self.prompt.value, seeds, self.strengths, self.word.value, self._tell)
                self.picture.value = gallery(rows, [f"seed {seed}" for seed in seeds])
        except MaceError as error:
            self.error = str(error)
        except KeyboardInterrupt:
            stopped = True
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            log.exception("The studio could not draw.")
        self.seconds, self.bar.value, self.bar.layout.visibility = time.perf_counter() - start, 0, "hidden"
        self.picture.remove_class("macelib-busy")
        erased = ", ".join(f"{n} × {s:g}" for n, s in self.strengths.items() if s) or "nothing"
        done = "stopped" if stopped else f"ready in {self.seconds:.1f} s; erased: {erased}"
        self.status.value = message(self.error or done, bool(self.error))

    def figure(self, title: str | None = None) -> viz.Figure:
        """What the page shows, as a figure for paper; MaceError where the page shows an error."""
        if self.error:
            raise MaceError(self.error)
        seeds = parse_seeds(self.seeds.value)
        rows = self.easel.rows(self.prompt.value, seeds, self.strengths, self.word.value)
        return viz.grid(list(rows.values()), list(rows), [f"seed {seed}" for seed in seeds], title)

    def close(self) -> None:
        """Take the page away; its controls do nothing any more."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
        for widget in (
            *self._controls,
            self.others,
            self.all,
            self.none,
            self.status,
            self.picture,
            self.bar,
            self.box,
        ):
            widget.close()
        _open.discard(self)

    def _repr_mimebundle_(self, **kw) -> dict:
        """The widgets for a page, and a sentence where there is none (a batch run, a page on a code host)."""
        note = "The interactive page appears here when this cell is run in JupyterLab."
        return {**({} if os.environ.get(BATCH) else self.box._repr_mimebundle_(**kw)), "text/plain": note}

    # --- what the controls do

    def _changed(self, _=None) -> None:
        """Draw soon: a change that comes before the last one is drawn takes its place. Without a loop, draw now."""
        for name, tick in self.ticks.items():
            self.sliders[name].disabled = not tick.value
        if self._quiet:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self.update()
        if self._timer:
            self._timer.cancel()
        self._timer = loop.call_later(PAUSE, self.update)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Several changes without drawing in between."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _offer(self, words: Mapping[str, list[int]]) -> None:
        """Words to choose from; the chosen one stays where it can, else a concept's, else the last."""
        if list(self.word.options) == list(words):
            return
        named = [name for name in self.ticks if name in words]
        plain = [word for word in words if word not in ("[start]", "[end]", "[padding]")]
        wanted = self.word.value if self.word.value in plain else (named or plain or ["[end]"])[-1]
        with self._together():
            self.word.options = list(words)
            self.word.value = wanted

    def _tick(self, button: widgets.Button) -> None:
        with self._together():
            for tick in self.ticks.values():
                tick.value = button is self.all
        self._changed()

    def _next_seeds(self, _) -> None:
        try:
            seeds = parse_seeds(self.seeds.value)
        except MaceError:
            seeds = (-1,) * 4
        self.seeds.value = ", ".join(str(max(seeds) + 1 + i) for i in range(len(seeds)))

    def _tell(self, done: int, total: int) -> None:
        self.bar.max, self.bar.value = total, done
