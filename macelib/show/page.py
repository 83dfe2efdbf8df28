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
.macelib-studio .pictures, .macelib-studio .status {{ color: var(--jp-ui-font-color1, inherit); }}
.macelib-studio .error {{ color: var(--jp-error-color0, #b71c1c); font-weight: 600; }}
.jp-mod-dark .macelib-studio .error, [data-jp-theme-light="false"] .macelib-studio .error {{ color: #ff8a80; }}
.jp-mod-dark .macelib-studio select, [data-jp-theme-light="false"] .macelib-studio select {{
  background-image: url("{ARROW}"); }}
.macelib-studio .macelib-busy {{ opacity: 0.5; }}
.macelib-studio .macelib-old {{ opacity: 0.3; filter: grayscale(1); }}
</style>"""
WIPE = "this.previousElementSibling.style.clipPath = `inset(0 0 0 ${this.value}%)`"
# The widgets' sliders have no accessible name of their own: each gets the text of its label, now and when rows join.
NAMES = """(() => {
  const name = () => document.querySelectorAll(".macelib-studio .widget-slider").forEach((slider) => {
    const label = slider.querySelector("label")?.textContent;
    const parts = slider.querySelectorAll("[role=slider], .widget-readout");
    parts.forEach((part) => label && part.setAttribute("aria-label", label));
  });
  name();
  const studio = document.querySelector(".macelib-studio");
  new MutationObserver(name).observe(studio ?? document.body, { childList: true, subtree: true });
})();"""


def gallery(
    rows: Mapping[str, Sequence[Image.Image]],
    columns: Sequence[str],
    captions: Mapping[str, Sequence[str]] | None = None,
    side: int = SIZES["small"],
    wipe: Sequence[str] = (),
) -> str:
    """Pictures by row label, a column each, with the captions of rows that have them; `side` pixels wide at most.

    wipe: labels of two rows that are shown above all, one over the other, with a handle that moves the border between
    them. Every picture says row, column and caption to those who cannot see it.
    """
    cells = ["<span></span>", *(f"<span>{html.escape(column)}</span>" for column in columns)]
    if wipe:
        cells.append(f"<span>{html.escape(' | '.join(wipe))}</span>")
        for pair, column in zip(zip(*(rows[label] for label in wipe), strict=True), columns, strict=True):
            both = "".join(
                _img(image, f"{label}, {column}, wiped", side) for label, image in zip(wipe, pair, strict=True)
            )
            name = html.escape(f"{' to '.join(wipe)}, {column}", quote=True)
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


def message(text: str, error: bool = False, odd: str = "") -> str:
    """A line about what is going on, read out when it changes, and a note below it."""
    role = 'class="status error" role="alert"' if error else 'class="status" role="status"'
    return f"<span {role}>{'⚠ ' if error else ''}{html.escape(text)}</span>{note(odd)}"


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
