"""The studio's widgets and where they stand; what they do is `studio`'s."""

from collections.abc import Iterator, Sequence

import ipywidgets as widgets

from ..concepts import Concept
from .page import NAMES, SIZES, STYLE

LAZY = {"continuous_update": False}
SHORT = {"style": {"description_width": "initial"}}  # the label takes no more room than it needs


def _wide(width: str) -> dict:
    return {"layout": {"width": width}}


class Controls:
    """Prompts, seeds, steps, guidance, a tick and a strength for each concept, buttons, status, pictures: in `box`.

    From top to bottom: what is drawn, what is erased, what is going on, how it is looked at, the pictures.
    """

    def __init__(self, prompt: str, seeds: Sequence[int], steps: int, guidance: float, saves: bool):
        line = {"layout": {"width": "auto", "max_width": "46em"}}
        self.prompt = widgets.Text(prompt, description="prompt", **line, **LAZY)
        self.beside = widgets.Text(description="beside it", placeholder="a second prompt to draw", **line, **LAZY)
        self.seeds = widgets.Text(", ".join(map(str, seeds)), description="seeds", **_wide("18em"), **LAZY)
        self.others = self._button("other seeds", "as many seeds, after these")
        self.steps = widgets.BoundedIntText(
            steps, 1, 1000, description="steps", tooltip="denoising steps", **SHORT, **_wide("8em"), **LAZY
        )
        bounds = {"min": min(0, guidance), "max": max(100, guidance), "step": 0.5}
        scale = "classifier-free guidance scale"
        self.guidance = widgets.BoundedFloatText(
            guidance, **bounds, description="guidance", tooltip=scale, **SHORT, **_wide("10em"), **LAZY
        )
        self.ticks: dict[str, widgets.Checkbox] = {}
        self.sliders: dict[str, widgets.FloatSlider] = {}
        self.lines = widgets.VBox(layout={"max_height": "16em", "overflow": "auto", "flex": "0 0 auto"})
        self.all, self.none = self._button("erase all"), self._button("erase none")
        self.more = widgets.Text(description="erase also", placeholder="name=anchor", **SHORT, **_wide("18em"), **LAZY)
        self.learn = self._button("learn it", "train this concept, or another anchor for it")
        self.start = self._button("draw", "draw what the controls say")
        self.halt = self._button("stop", "stop drawing or learning", disabled=True)
        self.bar = widgets.IntProgress(0, max=steps, layout={**line["layout"], "visibility": "hidden"})
        self.status, self.odd, self.elsewhere, self.picture = (widgets.HTML() for _ in range(4))
        self.status.add_class("macelib-said")
        self.word = widgets.Dropdown(description="attention of", **_wide("18em"))
        self.side = widgets.Dropdown(options=SIZES, description="pictures", **SHORT, **_wide("11em"))
        self.wipe = widgets.Checkbox(False, description="wipe from before to after", indent=False, **_wide("auto"))
        self.save = self._button("save", "pictures, settings and erasure")
        self.save.layout.display = "" if saves else "none"
        self.past = widgets.Dropdown(description="earlier", **line)
        self.box = self._layout()

    @staticmethod
    def _button(text: str, tooltip: str | None = None, **options) -> widgets.Button:
        return widgets.Button(description=text, tooltip=tooltip, **_wide("auto"), **options)

    def _layout(self) -> widgets.VBox:
        def row(*shown: widgets.Widget) -> widgets.HBox:
            return widgets.HBox(shown, layout={"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 8px"})

        script = {"output_type": "display_data", "data": {"application/javascript": NAMES}, "metadata": {}}
        box = widgets.VBox([
            widgets.HTML(STYLE, layout={"display": "none"}),
            self.prompt,
            self.beside,
            row(self.seeds, self.others, self.steps, self.guidance),
            self.lines,
            row(self.all, self.none, self.more, self.learn),
            row(self.start, self.halt, self.status),
            self.bar,
            self.odd,
            self.elsewhere,
            row(self.word, self.side, self.wipe, self.save),
            self.past,
            self.picture,
            widgets.Output(outputs=(script,)),
        ])  # fmt: skip
        box.add_class("macelib-studio")
        return box

    def add_line(self, concept: Concept, strength: float = 1.0) -> tuple[widgets.Widget, widgets.Widget]:
        """A tick and a strength for a concept, below the others; those that are there get its anchor."""
        name, label = concept.name, f"{concept.name} → {concept.anchor}"
        if name in self.ticks:
            self.ticks[name].description = label
            return self.ticks[name], self.sliders[name]
        half = {"width": "auto", "min_width": "8em", "max_width": "24em"}
        self.ticks[name] = widgets.Checkbox(True, description=label, indent=False, layout={**half, "flex": "1 1 8em"})
        scale = {"min": 0.0, "max": max(1.0, strength), "step": 0.05}
        said = {"description": "strength", "tooltip": f"strength of {name}"}
        self.sliders[name] = widgets.FloatSlider(
            strength, **scale, **said, **LAZY, **SHORT, layout={**half, "flex": "1 1 14em"}
        )
        line = widgets.HBox([self.ticks[name], self.sliders[name]], layout={"align_items": "center"})
        self.lines.children += (line,)
        return self.ticks[name], self.sliders[name]

    def state(self) -> dict[str, widgets.Widget]:
        """What decides which pictures are shown: controls by name, a tick and a strength of every concept included."""
        names = ("prompt", "beside", "seeds", "steps", "guidance")
        ticks = {f"tick {name}": tick for name, tick in self.ticks.items()}
        sliders = {f"strength {name}": slider for name, slider in self.sliders.items()}
        return {name: getattr(self, name) for name in names} | ticks | sliders

    def busy(self, busy: bool) -> None:
        """Show that something is going on, or that nothing is."""
        self.start.disabled = busy
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
