"""Build the atlases from the artists' npm packages: fetched by version, checked by SHA-256, rasterised with resvg.

The atlases are `data/world/<artist>.png`; `atlas.json` has their packages and checksums. The catalogue `concepts.json`
is written by hand and says which drawings are taken, in which order.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from macelib.files import atomic

from .catalogue import COLUMNS, SIZE, atlas, catalogue, world_folder

PACKAGES = {  # artist: npm package, version, SHA-256 of the package file
    "noto": (
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "twemoji": (
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "openmoji": (
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    ),
    "fluent": (
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
}
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'viewBox="{} {} {} {}" width="{}" height="{}">{}</svg>'
)


def fetch(artist: str, folder: Path) -> Path:
    """The package file of an artist: from `folder` if it lies there, else by `npm pack`; checked either way."""
    package, version, digest = PACKAGES[artist]
    path = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        command = ["npm", "pack", f"{package}@{version}", "--pack-destination", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise ValueError("building the atlas needs npm: install Node.js, or restore data/world") from error
        except subprocess.CalledProcessError as error:
            raise ValueError(f"`{' '.join(command)}` failed: {error.stderr.strip().splitlines()[-1:]}") from error
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise ValueError(f"{path} has SHA-256 {found}, not {digest}: delete it and fetch {package}@{version} again")
    return path


def drawings(package: Path) -> Callable[[str], str]:
    """A function from code point (lower case, without `fe0f`) to the SVG text of one artist's drawing."""
    with tarfile.open(package) as tar:
        icons, chars = (json.load(tar.extractfile(f"package/{f}.json")) for f in ("icons", "chars"))
    by_code = {"-".join(p for p in code.split("-") if p != "fe0f"): name for code, name in chars.items()}

    def svg(code: str) -> str:
        if code not in by_code:
            raise ValueError(f"{package.name} has no drawing of {code}")
        name = by_code[code]
        icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
        box = [icon.get(k, icons.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
        return SVG.format(*box, SIZE, SIZE, icon["body"])

    return svg


def rasterise(svg: str) -> np.ndarray:
    """One drawing: uint8 (64, 64, 4), straight alpha; colour is zeroed where nothing is seen."""
    import resvg_py

    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))))
    pixels = np.asarray(image.convert("RGBA")).copy()
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def make_sheet(svg: Callable[[str], str], codes: list[str]) -> np.ndarray:
    """The atlas of one artist: uint8 (rows * 64, 24 * 64, 4)."""
    rows = -(-len(codes) // COLUMNS)
    cells = np.zeros((rows * COLUMNS, SIZE, SIZE, 4), np.uint8)
    for i, code in enumerate(codes):
        cells[i] = rasterise(svg(code))
    return cells.reshape(rows, COLUMNS, SIZE, SIZE, 4).swapaxes(1, 2).reshape(rows * SIZE, COLUMNS * SIZE, 4)


def pixels_hash(path: Path) -> str:
    """SHA-256 of an atlas's pixels; empty where there is no such picture."""
    try:
        return hashlib.sha256(np.asarray(Image.open(path).convert("RGBA")).tobytes()).hexdigest()
    except (OSError, SyntaxError):
        return ""


def ensure_atlas(folder: Path | None = None) -> None:
    """Verify the atlases by hash, and build those anew that are missing or damaged.

    ValueError: it cannot be done, or what was built has other pixels than `atlas.json` says.
    """
    folder = folder or world_folder()
    wanted = json.loads((folder / "atlas.json").read_text())["artists"]

    def damaged() -> list[str]:
        return [a for a in PACKAGES if pixels_hash(folder / f"{a}.png") != wanted[a]["pixels_sha256"]]

    if artists := damaged():
        build(folder, artists)
        atlas.cache_clear()
        if artists := damaged():
            raise ValueError(
                f"the atlases of {', '.join(artists)} in {folder} were built with other pixels than atlas.json says: "
                "install resvg-py in the version of the extra `world`, or restore them: git checkout -- data/world"
            )


def build(out: Path, artists: Iterable[str]) -> None:
    """Make atlases in `out`."""
    codes = [e.code_point for e in catalogue() if e.code_point]
    with tempfile.TemporaryDirectory() as temporary:
        for artist in artists:
            sheet = make_sheet(drawings(fetch(artist, Path(temporary))), codes)
            with atomic(out / f"{artist}.png") as partial:
                Image.fromarray(sheet).save(partial, format="PNG", optimize=True)
