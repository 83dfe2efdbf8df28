"""The studio: a page on which concepts are ticked on and off, beside the pictures that the model then draws.

The controls are widgets, the drawing is `macelib.show.easel`'s; the logic needs no browser.
"""

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import ipywidgets as widgets
from PIL import Image

from ..errors import MaceError
from ..models.tokens import occurrences
from ..reading import seeds as read_seeds
from . import viz
from .cells import Cells, running_cell
from .doing import Doing
from .easel import MOST, Easel, drawn
from .hints import hint
from .keep import keep
from .learn import asked, learned, told
from .page import gallery, message, note, shares
from .past import Past
from .worker import heed

BATCH = "MACELIB_RUN_FOLDER"  # environment variable of a batch run, which has no page
_open: "weakref.WeakSet[Studio]" = weakref.WeakSet()
Judge = Callable[[Sequence[Image.Image], Sequence[str], Sequence[str]], list[dict[str, float]]]
Tell = Callable[[int, int], None]


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0, 1, 5-7" as (0, 1, 5, 6, 7); MaceError for anything else, for a seed twice, and for more than MOST."""
    return tuple(read_seeds(text, MOST))


class Studio(Doing):
    """The page: the last value of a cell. A new one for the same pipeline, or of the same cell, takes its place.

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
        cell = running_cell()
        for old in [old for old in _open if old.easel.pipe is easel.pipe or (cell and old.cell == cell)]:
            old.close()
        _open.add(self)
        super().__init__(prompt, seeds, easel.steps, easel.guidance, saves=folder is not None)
        self.easel, self.judge, self.folder = easel, judge, Path(folder) if folder is not None else None
        self.cell, self.history, self._learning = cell, Past(self.past), False
        for part in easel.erasure.parts:
            self._watch(*self.add_line(part.concept, part.strength))
        self._watch(self.prompt, self.beside, self.seeds, self.steps, self.guidance, self.word, self.side, self.wipe)
        self.past.observe(self._back, "value")
        self.cells = Cells(lambda text: setattr(self.elsewhere, "value", note(text)))
        for button, action in (
            (self.others, self._next_seeds), (self.all, self._tick), (self.none, self._tick),
            (self.start, self._changed), (self.save, self._save), (self.learn, self._learn),
        ):  # fmt: skip
            button.on_click(action)
        self.update()

    @property
    def strengths(self) -> dict[str, float]:
        """Strength by name of the concepts that are ticked."""
        return {name: self.sliders[name].value for name, tick in self.ticks.items() if tick.value}

    @property
    def settings(self) -> dict:
        """What the page says; MaceError for seeds that are none, and where the page is closed."""
        self._check_open()
        found = {"prompt": self.prompt.value, "seeds": list(parse_seeds(self.seeds.value))}
        found |= {"steps": self.steps.value, "guidance": self.guidance.value, "autocast": self.easel.autocast}
        found |= {"beside": self.beside.value} if self.beside.value.strip() else {}
        return {**found, "strengths": {name: s for name, s in self.strengths.items() if s}, "word": self.word.value}

    def update(self, stop: threading.Event | None = None) -> None:
        """Draw what the controls say. An error is shown in the page, above the pictures that were there before, dimmed.

        stop: once it is set, the drawing ends at the next step.
        """
        self._do("drawing …", partial(self._draw, partial(self._tell, stop)), draws=True)

    def _draw(self, tell: Tell) -> str:
        self.odd.value = note(hint(self.easel.pipe, self.prompt.value, self.beside.value))
        self._offer(self.easel.words(self.prompt.value))
        rows, columns = self._rows(tell), [f"seed {seed}" for seed in parse_seeds(self.seeds.value)]
        captions = {row: [shares(seen) for seen in verdicts] for row, verdicts in self._verdicts(rows).items()}
        shown = drawn(rows)
        pairs = list(zip(shown[::2], shown[1::2], strict=True)) if self.wipe.value else ()
        self.picture.value = gallery(rows, columns, captions, self.side.value, pairs)
        erased = ", ".join(f"{n} × {s:g}" for n, s in self.strengths.items() if s) or "nothing"
        self.history.add(self.settings, erased, self.state(), self._together())
        return f"erased: {erased}"

    def _rows(self, tell: Tell | None = None) -> dict[str, list[Image.Image]]:
        s = self.settings
        how = {"steps": s["steps"], "guidance": s["guidance"], "beside": s.get("beside", "")}
        return self.easel.rows(s["prompt"], s["seeds"], self.strengths, s["word"], tell, **how)

    def _verdicts(self, rows: Mapping[str, Sequence[Image.Image]]) -> dict[str, list[dict[str, float]]]:
        """What the judge takes each drawn picture for, and for how much each concept of its prompt; {} without one."""
        concepts, found = self.easel.erasure.concepts, {}
        among = [name for concept in concepts for name in (concept.name, concept.anchor)]
        for row in drawn(rows) if self.judge else ():
            prompt = row.partition(": ")[2] or self.prompt.value
            found[row] = self.judge(rows[row], among, [c.name for c in concepts if occurrences(prompt, c.name)])
        return found

    def figure(self, title: str | None = None) -> viz.Figure:
        """What the page shows, as a figure for paper; MaceError where the page shows an error, or is closed."""
        self._check_open()
        if self.error:
            raise MaceError(self.error)
        rows = self._rows()
        return viz.grid(list(rows.values()), list(rows), [f"seed {seed}" for seed in self.settings["seeds"]], title)

    def close(self) -> None:
        """Take the page away; its controls do nothing any more.

        It lets go of the model as soon as nothing is going on: IPython's `Out` holds the page on and on.
        """
        super().close()
        self.cells.close()
        _open.discard(self)
        self.worker.start(lambda _: self._let_go())

    def _check_open(self) -> None:
        if self.easel is None:
            raise MaceError("This page is closed: run its cell again, or go on with the page that took its place.")

    def _let_go(self) -> None:
        self.easel = self.judge = None

    def _repr_mimebundle_(self, **kw) -> dict:
        """The widgets for a page, and a sentence where there is none (a batch run, a page on a code host)."""
        note = "The interactive page appears here when this cell is run in JupyterLab."
        return {**({} if os.environ.get(BATCH) else self.box._repr_mimebundle_(**kw)), "text/plain": note}

    # --- what the controls do

    def _watch(self, *controls: widgets.Widget) -> None:
        for widget in controls:
            widget.observe(self._changed, "value")

    def _changed(self, _=None) -> None:
        """Draw soon: a change that comes before the last one is drawn takes its place."""
        for name, tick in self.ticks.items():
            self.sliders[name].disabled = not tick.value
        if not self._unheard() and not self._learning:  # what is learned is drawn with all changes
            self._soon(self.update)

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
        if self._unheard():
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

    def _save(self, _) -> None:
        def work(stop: threading.Event | None) -> str:
            rows = self._rows(partial(self._tell, stop))
            settings = {**self.settings, "judge": _called(self.judge), "verdicts": self._verdicts(rows)}
            place = keep(self.folder, self.easel.pipe, self.easel.erasure, rows, self.figure(), settings)
            return f"saved in {place}"

        self._aside(lambda stop: self._do("saving …", partial(work, stop)))

    def _learn(self, _) -> None:
        self._aside(self._learn_now)

    def _learn_now(self, stop: threading.Event | None) -> None:
        """Train the concept that is asked for, put it beside the others and draw."""

        def tell(stage: str, done: int, total: int, detail: str) -> None:
            self._tell(stop, done, total)
            if done:
                self.status.value = message(f"learning {self.more.value}: {told(stage)}, {done} of {total}")

        def work() -> str:
            concept = asked(self.easel.pipe, self.more.value)
            self.easel.adopt(learned(self.easel.pipe, self.easel.erasure, concept, tell, partial(heed, stop)))
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


def _called(judge: Judge | None) -> str | None:
    """The name of a judge, or of the classifier that it asks."""
    of = judge.args[0] if isinstance(judge, partial) and judge.args else judge
    return None if judge is None else getattr(of, "name", getattr(of, "__name__", type(of).__name__))
