"""The studio's widgets and where they stand; what they do is `studio`'s."""

from collections.abc import Iterator, Sequence

import ipywidgets as widgets

from ..concepts import Concept
from .page import NAMES, SIZES, STYLE

LAZY = {"continuous_update": False}
NARROW = {"layout": {"width": "13em"}}


class Controls:
    """Prompts, seeds, steps, guidance, a tick and a strength for each concept, buttons, status, pictures: in `box`."""

    def __init__(self, prompt: str, seeds: Sequence[int], steps: int, guidance: float, saves: bool):
        self.prompt = widgets.Text(
            prompt, description="prompt", layout={"flex": "1 1 20em", "max_width": "46em"}, **LAZY
        )
        self.seeds = widgets.Text(", ".join(map(str, seeds)), description="seeds", **LAZY)
        self.others = widgets.Button(description="other seeds", tooltip="as many seeds, after these")
        self.steps = widgets.BoundedIntText(steps, 1, 1000, description="steps", **NARROW, **LAZY)
        self.guidance = widgets.BoundedFloatText(guidance, min=0, max=100, step=0.5, description="guidance", **NARROW)
        self.beside = widgets.Text(description="beside it", placeholder="a second text to draw", **LAZY)
        self.past = widgets.Dropdown(description="earlier", layout={"flex": "1 1 20em", "max_width": "46em"})
        self.wipe = widgets.Checkbox(False, description="wipe from before to after", indent=False)
        self.word = widgets.Dropdown(description="attention of")
        self.side = widgets.Dropdown(options=SIZES, description="pictures", **NARROW)
        self.all, self.none = (widgets.Button(description=f"erase {label}") for label in ("all", "none"))
        self.ticks: dict[str, widgets.Checkbox] = {}
        self.sliders: dict[str, widgets.FloatSlider] = {}
        self.lines = widgets.VBox(layout={"max_height": "16em", "overflow": "auto", "flex": "0 0 auto"})
        self.more = widgets.Text(description="erase also", placeholder="name=anchor", **LAZY)
        self.learn = widgets.Button(description="learn it", tooltip="train this concept, or another anchor for it")
        self.status, self.picture, self.elsewhere = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.bar = widgets.IntProgress(0, max=steps, layout={"width": "8em", "visibility": "hidden"})
        self.halt = widgets.Button(description="stop", disabled=True, tooltip="stop drawing or learning")
        self.save = widgets.Button(
            description="save", tooltip="pictures, settings and erasure", layout={"display": "" if saves else "none"}
        )
        self.box = self._layout()

    def _layout(self) -> widgets.VBox:
        rows = (
            [self.prompt, self.beside],
            [self.past],
            [self.seeds, self.others, self.steps, self.guidance],
            [self.word, self.side, self.wipe, self.save],
            [self.all, self.none, self.more, self.learn],
        )
        head = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        foot = widgets.HBox([self.halt, self.bar, self.status, self.elsewhere], layout={"flex_flow": "row wrap"})
        script = {"output_type": "display_data", "data": {"application/javascript": NAMES}, "metadata": {}}
        names = widgets.Output(outputs=(script,))
        box = widgets.VBox([widgets.HTML(STYLE), *head, self.lines, foot, self.picture, names])
        box.add_class("macelib-studio")
        return box

    def add_line(self, concept: Concept, strength: float = 1.0) -> tuple[widgets.Widget, widgets.Widget]:
        """A tick and a strength for a concept, below the others; those that are there get its anchor."""
        name, label = concept.name, f"{concept.name} → {concept.anchor}"
        if name in self.ticks:
            self.ticks[name].description = label
            return self.ticks[name], self.sliders[name]
        self.ticks[name] = widgets.Checkbox(True, description=label, indent=False, layout={"width": "16em"})
        scale = {"min": 0.0, "max": 1.0, "step": 0.05, "description": f"strength of {name}"}
        style, layout = {"description_width": "12em"}, {"width": "32em"}
        self.sliders[name] = widgets.FloatSlider(min(strength, 1.0), **scale, **LAZY, style=style, layout=layout)
        self.lines.children += (widgets.HBox([self.ticks[name], self.sliders[name]]),)
        return self.ticks[name], self.sliders[name]

    def state(self) -> dict[str, widgets.Widget]:
        """What decides which pictures are shown: controls by name, a tick and a strength of every concept included."""
        names = ("prompt", "beside", "seeds", "steps", "guidance")
        ticks = {f"tick {name}": tick for name, tick in self.ticks.items()}
        sliders = {f"strength {name}": slider for name, slider in self.sliders.items()}
        return {name: getattr(self, name) for name in names} | ticks | sliders

    def busy(self, busy: bool) -> None:
        """Show that something is going on, or that nothing is."""
        self.bar.layout.visibility = "visible" if busy else "hidden"
        if busy:
            self.picture.add_class("macelib-busy")
        else:
            self.picture.remove_class("macelib-busy")
            self.bar.value = 0

    def old(self, old: bool) -> None:
        """Show whether the pictures are those of an earlier state."""
        if old:
            self.picture.add_class("macelib-old")
        else:
            self.picture.remove_class("macelib-old")

    def widgets(self) -> Iterator[widgets.Widget]:
        """Every widget of the page."""
        waiting = [self.box]
        while waiting:
            widget = waiting.pop()
            waiting += getattr(widget, "children", ())
            yield widget
