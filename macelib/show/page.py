"""The HTML of the studio: pictures in a grid, in the colours of the page around them, each with a text."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from PIL import Image

SIZES = {"small": 112, "medium": 192, "large": 320, "huge": 512}  # pixels of a picture's side on the page
ARROW = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E%3Cpath fill='%23e0e0e0' d='M5 7l4 4 4-4z'/%3E%3C/svg%3E"  # noqa: E501
STYLE = f"""<style>
.macelib-studio .pictures {{ display: grid; gap: 4px; align-items: start; justify-content: start; line-height: 1.3; }}
.macelib-studio .pictures > span {{ align-self: center; }}
.macelib-studio .pictures figure {{ margin: 0; }}
.macelib-studio .pictures figcaption {{ font-size: 11px; line-height: 1.25; white-space: pre-line; }}
.macelib-studio .pictures img {{ width: 100%; display: block; border-radius: 3px; }}
.macelib-studio .wipe {{ position: relative; }}
.macelib-studio .wipe img + img {{ position: absolute; top: 0; left: 0; clip-path: inset(0 0 0 50%); }}
.macelib-studio .wipe input {{ width: 100%; margin: 2px 0 0; }}
.macelib-studio .scroll {{ overflow-x: auto; }}
.macelib-studio .widget-checkbox input {{ vertical-align: middle; margin: 0 6px 2px 0; }}
.macelib-studio .widget-checkbox, .macelib-studio .widget-label-basic {{ height: auto; }}
.macelib-studio .widget-label-basic {{ white-space: normal; line-height: 1.4; padding: 4px 0; }}
.macelib-studio .widget-html:has(> .widget-html-content:empty) {{ display: none; }}
.macelib-studio .macelib-said {{ flex: 1 1 16em; width: auto; }}
.macelib-studio .macelib-said .widget-html-content, .macelib-studio .status {{ line-height: 1.4; }}
.macelib-studio .widget-hprogress, .macelib-studio .progress {{ height: 6px; }}
.macelib-studio .progress {{ margin: 0; background: var(--jp-layout-color2, #e0e0e0); }}
.macelib-studio .pictures, .macelib-studio .status {{ color: var(--jp-ui-font-color1, inherit); }}
.macelib-studio .error {{ color: var(--jp-error-color0, #b71c1c); font-weight: 600; }}
.jp-mod-dark .macelib-studio .error, [data-jp-theme-light="false"] .macelib-studio .error {{ color: #ff8a80; }}
.jp-mod-dark .macelib-studio select, [data-jp-theme-light="false"] .macelib-studio select {{
  background-image: url("{ARROW}"); }}
.macelib-studio .macelib-busy {{ opacity: 0.5; }}
.macelib-studio .macelib-old {{ opacity: 0.3; filter: grayscale(1); }}
</style>"""
WIPE = "this.previousElementSibling.style.clipPath = `inset(0 0 0 ${this.value}%)`"
# What the widgets leave out: for those who hear the page, names of sliders, how far the bar is, and that the status is
# to be read out; for those who use the keyboard, that keys belong to the control. JupyterLab would take an arrow for a
# move to another cell, and an x for cutting this one. It is said now, and whenever something on the page changes.
NAMES = """(() => {
  const set = (element, names) => Object.entries(names).forEach(([name, value]) => element.setAttribute(name, value));
  const name = () => document.querySelectorAll(".macelib-studio").forEach((studio) => {
    set(studio, { role: "region", "aria-label": "studio" });
    studio.querySelectorAll(".widget-slider").forEach((slider) => {
      const label = slider.querySelector("label");
      const parts = slider.querySelectorAll("[role=slider], .widget-readout");
      parts.forEach((part) => label && set(part, { "aria-label": label.title || label.textContent }));
    });
    const keyed = "select, button, [type=checkbox], [type=range], [role=slider]";
    studio.querySelectorAll(keyed).forEach((control) => set(control, { "data-lm-suppress-shortcuts": "true" }));
    studio.querySelectorAll(".macelib-said").forEach((said) => set(said, { role: "status" }));
    studio.querySelectorAll(".progress").forEach((bar) => {
      const done = parseInt(bar.querySelector(".progress-bar")?.style.width) || 0;
      set(bar, { role: "progressbar", "aria-label": "progress", "aria-valuenow": done });
    });
  });
  name();
  const studio = document.querySelector(".macelib-studio:not([data-heard])");
  studio?.setAttribute("data-heard", "");
  const what = { childList: true, subtree: true, attributes: true, attributeFilter: ["style"] };
  new MutationObserver(name).observe(studio ?? document.body, what);
})();"""


def gallery(
    rows: Mapping[str, Sequence[Image.Image]],
    columns: Sequence[str],
    captions: Mapping[str, Sequence[str]] | None = None,
    side: int = SIZES["small"],
    wipe: Sequence[tuple[str, str]] = (),
) -> str:
    """Pictures by row label, a column each, with the captions of rows that have them; `side` pixels wide at most.

    wipe: pairs of row labels, shown above all, one over the other, with a handle that moves the border between them.
    Every picture says row, column and caption to those who cannot see it.
    """
    cells = ["<span></span>", *(f"<span>{html.escape(column)}</span>" for column in columns)]
    for below, above in wipe:
        cells.append(f"<span>{html.escape(below.partition(': ')[0])} | {html.escape(above)}</span>")
        for one, other, column in zip(rows[below], rows[above], columns, strict=True):
            both = _img(one, f"{below}, {column}, wiped", side) + _img(other, f"{above}, {column}, wiped", side)
            name = html.escape(f"{below.partition(': ')[0]} to {above}, {column}", quote=True)
            handle = f'<input type="range" value="50" aria-label="{name}" oninput="{WIPE}">'
            cells.append(f'<figure class="wipe">{both}{handle}</figure>')
    for label, images in rows.items():
        cells.append(f"<span>{html.escape(label)}</span>")
        texts = (captions or {}).get(label, [""] * len(images))
        for image, column, text in zip(images, columns, texts, strict=True):
            below = f"<figcaption>{html.escape(text)}</figcaption>" if text else ""
            cells.append(f"<figure>{_img(image, f'{label}, {column}', side)}{below}</figure>")
    tracks = f"minmax(5em, 9em) repeat({len(columns)}, minmax({side // 2}px, {side}px))"
    grid = f'<div class="pictures" style="grid-template-columns: {tracks}">{"".join(cells)}</div>'
    return f'<div class="scroll">{grid}</div>'


def message(text: str, error: bool = False) -> str:
    """A line about what is going on; an error is read out at once."""
    role = 'class="status error" role="alert"' if error else 'class="status"'
    return f"<span {role}>{'⚠ ' if error else ''}{html.escape(text)}</span>"


def shares(seen: Mapping[str, float]) -> str:
    """What a judge sees, a name and its probability a line."""
    return "\n".join(f"{name} {share:.2f}" for name, share in seen.items())


def note(text: str) -> str:
    """A line of its own; of an empty text, nothing."""
    return f'<div class="status" role="note">{html.escape(text)}</div>' if text else ""


def _img(image: Image.Image, label: str, side: int) -> str:
    image, buffer = image.convert("RGB"), io.BytesIO()
    image.thumbnail((2 * side, 2 * side))  # sharp on screens of twice the pixels
    kind = "png" if max(image.size) <= 128 else "jpeg"
    image.save(buffer, kind, **({} if kind == "png" else {"quality": 90}))
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(label, quote=True)}" src="data:image/{kind};base64,{data}">'
