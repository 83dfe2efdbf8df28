"""The studio: a page on which concepts are ticked on and off, beside the pictures that the model then draws.

The controls are widgets, the drawing is `macelib.show.easel`'s; the logic needs no browser.
"""

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ipywidgets as widgets
from PIL import Image

from ..errors import MaceError, explained
from ..models.tokens import occurrences
from ..reading import seeds as read_seeds
from . import viz
from .cells import Cells
from .controls import Controls
from .easel import MOST, Easel
from .hints import hint
from .keep import keep
from .learn import asked, learned
from .page import gallery, message, note
from .past import Past
from .worker import Stopped, Worker

log = logging.getLogger(__name__)
PAUSE = 0.08  # seconds of rest before drawing, in which further changes are gathered
BATCH = "MACELIB_RUN_FOLDER"  # environment variable of a batch run, which has no page
SEEN = ("before", "after")  # rows whose pictures are judged
WAITING = message("waiting for another drawing or training …")
_open: "weakref.WeakSet[Studio]" = weakref.WeakSet()
Judge = Callable[[Sequence[Image.Image], Sequence[str], Sequence[str]], list[dict[str, float]]]


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0, 1, 5-7" as (0, 1, 5, 6, 7); MaceError for anything else, for a seed twice, and for more than MOST."""
    return tuple(read_seeds(text, MOST))


class Studio(Controls):
    """The page: the last value of a cell. A new one for the same pipeline takes the place of the one before.

    judge(images, names to choose among, names to tell of): probability by name for each picture, shown below it
    (`macelib.evaluate.verdicts`). folder: where "save" writes; without one there is no such button. `error` is the
    sentence that is shown in the page, or empty; `seconds` is what the last reaction took.
    """

    def __init__(
        self,
        easel: Easel,
        prompt: str,
        seeds: Sequence[int] = (0, 1, 2, 3),
        judge: Judge | None = None,
        folder: str | Path | None = None,
    ):
        for old in [studio for studio in _open if studio.easel.pipe is easel.pipe]:
            old.close()
        _open.add(self)
        super().__init__(prompt, seeds, easel.steps, easel.guidance, saves=folder is not None)
        self.easel, self.judge, self.folder = easel, judge, Path(folder) if folder is not None else None
        self.error, self.seconds, self.worker, self.history = "", 0.0, Worker(), Past(self.past)
        self._timer, self._quiet, self._closed, self._learning = None, None, False, False
        for part in easel.erasure.parts:
            self._watch(*self.add_line(part.concept, part.strength))
        self._watch(self.prompt, self.beside, self.seeds, self.steps, self.guidance, self.word, self.side, self.wipe)
        self.past.observe(self._back, "value")
        self.cells = Cells(lambda text: setattr(self.elsewhere, "value", note(text)))
        for button, action in (
            (self.others, self._next_seeds), (self.all, self._tick), (self.none, self._tick),
            (self.halt, self._halt), (self.save, self._save), (self.learn, self._learn),
        ):  # fmt: skip
            button.on_click(action)
        self.update()

    @property
    def strengths(self) -> dict[str, float]:
        """Strength by name of the concepts that are ticked."""
        return {name: self.sliders[name].value for name, tick in self.ticks.items() if tick.value}

    @property
    def settings(self) -> dict:
        """What the page says; MaceError for seeds that are none."""
        found = {"prompt": self.prompt.value, "seeds": list(parse_seeds(self.seeds.value))}
        found |= {"steps": self.steps.value, "guidance": self.guidance.value, "autocast": self.easel.autocast}
        found |= {"beside": self.beside.value} if self.beside.value.strip() else {}
        return {**found, "strengths": {name: s for name, s in self.strengths.items() if s}, "word": self.word.value}

    def update(self, stop: threading.Event | None = None) -> None:
        """Draw what the controls say. An error is shown in the page, above the pictures that were there before, dimmed.

        stop: once it is set, the drawing ends at the next step.
        """
        self._do("drawing …", partial(self._draw, partial(self._tell, stop)), draws=True)

    def _draw(self, tell: Callable[[int, int], None]) -> str:
        self._offer(self.easel.words(self.prompt.value))
        rows, seeds = self._rows(tell), parse_seeds(self.seeds.value)
        captions, columns = {row: self._captions(rows[row]) for row in SEEN}, [f"seed {seed}" for seed in seeds]
        self.picture.value = gallery(rows, columns, captions, self.side.value, SEEN if self.wipe.value else ())
        erased = ", ".join(f"{n} × {s:g}" for n, s in self.strengths.items() if s) or "nothing"
        self.history.add(self.settings, erased, self.state(), self._together())
        return f"erased: {erased}"

    def _rows(self, tell=None) -> dict[str, list[Image.Image]]:
        s = self.settings
        how = {"steps": s["steps"], "guidance": s["guidance"]}
        rows = self.easel.rows(s["prompt"], s["seeds"], self.strengths, s["word"], tell, **how)
        for row, some in zip(SEEN, (None, self.strengths), strict=True) if "beside" in s else ():
            rows[f"{row}: {s['beside']}"] = self.easel.draw(s["beside"], s["seeds"], some, tell, **how).images
        return rows

    def _captions(self, images: Sequence[Image.Image]) -> list[str]:
        """What the judge takes each picture for, and for how much each concept of the prompt; without one, nothing."""
        if self.judge is None:
            return [""] * len(images)
        concepts = self.easel.erasure.concepts
        among = [name for concept in concepts for name in (concept.name, concept.anchor)]
        named = [c.name for c in concepts if occurrences(self.prompt.value, c.name)]
        return [
            "\n".join(f"{name} {share:.2f}" for name, share in seen.items())
            for seen in self.judge(images, among, named)
        ]

    def _do(self, what: str, work: Callable[[], str], draws: bool = False) -> None:
        """Do something that takes a while, with the page busy; what goes wrong is said in the page.

        draws: without it done, the pictures are those of an earlier state, and look like it.
        """
        if self._closed:
            return
        start, self._timer, self.error, done, odd = time.perf_counter(), None, "", "", ""
        self._doing, self.status.value = what, message(what)
        self.busy(True)
        try:
            with explained():
                odd = hint(self.easel.pipe, self.prompt.value, self.beside.value)
                done = work()
        except MaceError as error:
            self.error = str(error)
        except (Stopped, KeyboardInterrupt):
            done = ""
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            log.exception("The studio could not go on.")
        self.seconds = time.perf_counter() - start
        self.busy(False)
        if draws:
            self.old(not done)
        said = f"ready in {self.seconds:.1f} s; {done}" if done else "stopped"
        self.status.value = message(self.error or said, bool(self.error), odd)

    def figure(self, title: str | None = None) -> viz.Figure:
        """What the page shows, as a figure for paper; MaceError where the page shows an error."""
        if self.error:
            raise MaceError(self.error)
        rows = self._rows()
        return viz.grid(list(rows.values()), list(rows), [f"seed {seed}" for seed in self.settings["seeds"]], title)

    def close(self) -> None:
        """Take the page away; its controls do nothing any more."""
        self._closed = True
        self.worker.stop()
        self.cells.close()
        if self._timer:
            self._timer.cancel()
        for widget in [*self.widgets()]:
            widget.close()
        _open.discard(self)

    def _repr_mimebundle_(self, **kw) -> dict:
        """The widgets for a page, and a sentence where there is none (a batch run, a page on a code host)."""
        note = "The interactive page appears here when this cell is run in JupyterLab."
        return {**({} if os.environ.get(BATCH) else self.box._repr_mimebundle_(**kw)), "text/plain": note}

    # --- what the controls do

    def _watch(self, *controls: widgets.Widget) -> None:
        for widget in controls:
            widget.observe(self._changed, "value")

    def _changed(self, _=None) -> None:
        """Draw soon: a change that comes before the last one is drawn takes its place. Without a loop, draw now."""
        for name, tick in self.ticks.items():
            self.sliders[name].disabled = not tick.value
        if self._quiet == threading.get_ident() or self._learning:  # what is learned is drawn with all changes
            return
        if self._timer:
            self._timer.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self.update()
        self._timer = loop.call_later(PAUSE, self._beside, self.update)

    def _beside(self, work: Callable[[threading.Event | None], None]) -> None:
        """Have something done in the worker's thread, with Stop to click meanwhile; without a loop, do it now."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return work(None)

        def all_of_it(stop: threading.Event) -> None:
            self.halt.disabled = False
            try:
                work(stop)
            finally:
                self.halt.disabled = True

        self.worker.start(all_of_it)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Several changes without drawing in between."""
        self._quiet = threading.get_ident()
        try:
            yield
        finally:
            self._quiet = None

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
        """Tick all, at full strength, or none."""
        with self._together():
            for name, tick in self.ticks.items():
                tick.value = button is self.all
                if tick.value:
                    self.sliders[name].value = 1.0
        self._changed()

    def _back(self, _) -> None:
        """Show the chosen earlier state again; concepts that were learned since are off in it."""
        if self._quiet == threading.get_ident():
            return
        with self._together():
            self.history.back(self.state(), {f"tick {name}": False for name in self.ticks})
        self._changed()

    def _next_seeds(self, _) -> None:
        try:
            seeds = parse_seeds(self.seeds.value)
        except MaceError:
            seeds = (-1,) * 4
        self.seeds.value = ", ".join(str(max(seeds) + 1 + i) for i in range(len(seeds)))

    def _halt(self, _) -> None:
        self.status.value = message("stopping …")
        self.worker.stop()

    def _save(self, _) -> None:
        def work(stop: threading.Event | None) -> str:
            rows = self._rows(partial(self._tell, stop))
            settings = {**self.settings, "verdicts": {row: self._captions(rows[row]) for row in SEEN}}
            place = keep(self.folder, self.easel.pipe, self.easel.erasure, rows, self.figure(), settings)
            return f"saved in {place}"

        self._beside(lambda stop: self._do("saving …", partial(work, stop)))

    def _learn(self, _) -> None:
        self._beside(self._learn_now)

    def _learn_now(self, stop: threading.Event | None) -> None:
        """Train the concept that is asked for, put it beside the others and draw."""

        def tell(stage: str, done: int, total: int, detail: str) -> None:
            self._tell(stop, done, total)
            self.status.value = message(f"learning {self.more.value}: {stage} {done}/{total}")

        def work() -> str:
            concept = asked(self.easel.pipe, self.more.value)
            self.easel.adopt(learned(self.easel.pipe, self.easel.erasure, concept, tell))
            self._watch(*self.add_line(concept))
            self.more.value = ""
            return f"{concept.name} is learned"

        before, self._learning, self.learn.disabled, self.save.disabled = self.easel.erasure, True, True, True
        try:
            self._do(f"learning {self.more.value} …", work)
        finally:
            self._learning = self.learn.disabled = self.save.disabled = False
        if self.easel.erasure is not before:
            self.update(stop)

    def _tell(self, stop: threading.Event | None, done: int, total: int) -> None:
        if stop is not None and stop.is_set():
            raise Stopped
        self.bar.max, self.bar.value = total, done
        if not done:
            self.status.value = WAITING
        elif self.status.value == WAITING:
            self.status.value = message(self._doing)
