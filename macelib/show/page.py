"""The HTML of the studio: pictures in a grid, in the colours of the page around them, each with a text."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from PIL import Image

SIDE, LARGEST = 112, 256  # pixels of a picture: on the page at least, and sent to it at most
STYLE = """<style>
.macelib-studio .pictures { display: grid; gap: 4px; align-items: center; justify-content: start; line-height: 1.3; }
.macelib-studio .pictures img { width: 100%; max-width: 256px; display: block; border-radius: 3px; }
.macelib-studio .pictures, .macelib-studio .status { color: var(--jp-ui-font-color1, inherit); }
.macelib-studio .error { color: var(--jp-error-color0, #b71c1c); font-weight: 600; }
.jp-mod-dark .macelib-studio .error, [data-jp-theme-light="false"] .macelib-studio .error { color: #ff8a80; }
.macelib-studio .macelib-busy { opacity: 0.5; }
</style>"""


def gallery(rows: Mapping[str, Sequence[Image.Image]], columns: Sequence[str]) -> str:
    """Pictures by row label, a column each; every picture says row and column to those who cannot see it."""
    cells = ["<span></span>", *(f"<span>{html.escape(column)}</span>" for column in columns)]
    for label, images in rows.items():
        cells.append(f"<span>{html.escape(label)}</span>")
        cells += [_img(image, f"{label}, {column}") for image, column in zip(images, columns, strict=True)]
    tracks = f"minmax(5em, 9em) repeat({len(columns)}, minmax({SIDE // 2}px, {SIDE}px))"
    return f'<div class="pictures" style="grid-template-columns: {tracks}">{"".join(cells)}</div>'


def message(text: str, error: bool = False) -> str:
    """A line about what is going on, read out when it changes."""
    role = 'class="status error" role="alert"' if error else 'class="status" role="status"'
    return f"<span {role}>{'⚠ ' if error else ''}{html.escape(text)}</span>"


def _img(image: Image.Image, label: str) -> str:
    image, buffer = image.convert("RGB"), io.BytesIO()
    image.thumbnail((LARGEST, LARGEST))
    kind = "png" if max(image.size) <= 128 else "jpeg"
    image.save(buffer, kind, **({} if kind == "png" else {"quality": 90}))
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(label, quote=True)}" src="data:image/{kind};base64,{data}">'
