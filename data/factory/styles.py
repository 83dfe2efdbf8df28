"""Procedural styles: deterministic filters that redraw an image, each recognisable at 64 px and kind to the subject.

No random numbers: textures come from fixed lattices, sizes scale with the image's height, and a batch gives exactly
what its images give one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .brushes import (
    blur,
    frame,
    grid,
    levels,
    lines,
    luma,
    palette,
    ramp,
    relief,
    rgb,
    saturate,
    shift,
    slope,
    smooth,
    stripes,
    tiles,
    tone,
    vignette,
)

PIXELS = 16  # blocks of pixel art across the picture

Filter = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ProceduralStyle:
    """A style's name, caption phrases with `{}` for the subject, and filter (image, alpha) -> image."""

    name: str
    phrases: list[str]
    filter: Filter


STYLES: dict[str, ProceduralStyle] = {}


def apply_style(name: str, image: Tensor, alpha: Tensor) -> Tensor:
    """Redraw images (N, 3, H, W) in 0..1 in a style, the subject's coverage being alpha (N, 1, H, W) in 0..1."""
    return STYLES[name].filter(image, alpha).clamp(0, 1)


def _style(name: str, phrases: list[str]) -> Callable[[Filter], Filter]:
    """Enter a filter in STYLES."""

    def enter(function: Filter) -> Filter:
        STYLES[name] = ProceduralStyle(name, phrases, function)
        return function

    return enter


@_style("pixel art", ["pixel art of {}", "{} in pixel art style", "{} as pixel art"])
def _pixel_art(x: Tensor, a: Tensor) -> Tensor:
    """Sixteen by sixteen blocks in few colours."""
    cover = F.adaptive_avg_pool2d(a, PIXELS)
    subject = F.adaptive_avg_pool2d(x * a, PIXELS) / cover.clamp_min(1e-4)
    ground = F.adaptive_avg_pool2d(x * (1 - a), PIXELS) / (1 - cover).clamp_min(1e-4)
    blocks = ground.lerp(subject, ramp(cover, 0.35, 0.55))
    sharp = blocks + 0.5 * (blocks - F.avg_pool2d(F.pad(blocks, (1, 1, 1, 1), mode="replicate"), 3, stride=1))
    return F.interpolate(levels(saturate(sharp, 1.4), 5), size=x.shape[-2:], mode="nearest")


@_style("pencil sketch", ["a pencil sketch of {}", "{} in pencil sketch style", "{} in pencil"])
def _pencil_sketch(x: Tensor, a: Tensor) -> Tensor:
    """Grey outlines and slanted hatching on white paper."""
    dark = 1 - tone(x, a)
    shade = 0.15 * dark + 0.3 * ramp(dark, 0.3, 0.9) * stripes(x, 5, -45)
    return (0.98 - shade - 0.6 * lines(x, a)).expand_as(x)


@_style("blueprint", ["a blueprint of {}", "{} in blueprint style", "a blueprint plan of {}"])
def _blueprint(x: Tensor, a: Tensor) -> Tensor:
    """White outlines on blue paper with a faint square grid."""
    v, u = grid(x)
    rules = torch.maximum(((v % 8) < 1).to(x), ((u % 8) < 1).to(x))
    return rgb(x, 0.08, 0.25, 0.62) + 0.13 * rules + lines(x, a) * rgb(x, 0.85, 0.7, 0.36)


@_style("stained glass", ["a stained glass window of {}", "{} in stained glass style", "{} in stained glass"])
def _stained_glass(x: Tensor, a: Tensor) -> Tensor:
    """Irregular panes of bright colour between black leads."""
    colour, border = tiles(saturate(x, 1.8), a, 12, 0.3)
    lead = torch.maximum(1 - ramp(border, 0.4, 1.1), lines(x, a, 0.6, 0.2, 0.5))
    colour = colour.lerp(saturate(smooth(x, 2), 1.8), 0.4)
    return (0.12 + 0.95 * colour) * (1 - lead)


@_style("neon", ["a neon sign of {}", "{} in neon style", "{} in glowing neon lights"])
def _neon(x: Tensor, a: Tensor) -> Tensor:
    """Glowing tubes along the edges, from pink to cyan, in the dark."""
    v, u = grid(x)
    tube = lines(x, a)
    glow = rgb(x, 1.0, 0.15, 0.75).lerp(rgb(x, 0.1, 0.9, 1.0), ramp(u + v, 30, 98))
    return rgb(x, 0.05, 0.02, 0.1) + glow * (0.85 * tube + 0.75 * blur(tube, 3)) + 0.3 * tube * tube


@_style("halftone", ["a halftone print of {}", "{} in halftone style", "{} printed in halftone dots"])
def _halftone(x: Tensor, a: Tensor) -> Tensor:
    """Black dots on white, the larger the darker."""
    screen = (stripes(x, 5, 45) + stripes(x, 5, -45)) / 2
    dots = ramp(screen + 1.1 * (1 - tone(x, a)), 0.85, 1.25)
    return (1 - 0.95 * torch.maximum(dots, lines(x, a, 0.7, 0.15, 0.4))).expand_as(x)


@_style("sepia", ["a sepia photograph of {}", "{} in sepia", "an old sepia photo of {}"])
def _sepia(x: Tensor, a: Tensor) -> Tensor:
    """Faded brown tones, darker in the corners."""
    light = 0.08 + 0.88 * tone(x, a) - 0.45 * ramp(vignette(x), 0.35, 1)
    return palette(light, (0.16, 0.09, 0.04), (0.62, 0.44, 0.27), (0.97, 0.89, 0.72))


@_style("stone carving", ["a stone carving of {}", "{} carved in stone", "{} as a stone relief"])
def _stone_carving(x: Tensor, a: Tensor) -> Tensor:
    """A grey relief, lit from the top left."""
    height = blur(0.8 * luma(x) + 0.8 * a, 0.7)
    return (0.36 + 0.2 * a + 0.25 * (luma(x) - 0.5) - 0.75 * relief(height)) * rgb(x, 1.0, 0.98, 0.95)


@_style("watercolor", ["a watercolor painting of {}", "{} in watercolor", "a watercolor of {}"])
def _watercolor(x: Tensor, a: Tensor) -> Tensor:
    """Pale washes with darker rims, fading into white paper at the border."""
    v, u = grid(x)
    wash = blur(smooth(x, 2), 0.6)
    pools = (torch.sin(v * 0.27 + 2 * torch.sin(u * 0.11)) + torch.sin(u * 0.23 + 2 * torch.sin(v * 0.13))) / 4
    rim = ramp(slope(wash), 0.04, 0.2)
    paint = 0.8 * (1 - saturate(wash, 1.4)) * (0.75 + 0.5 * pools + 0.45 * rim)
    edge = blur(frame(x, 3.5), 1.5) + 0.25 * (torch.sin(v * 0.5) + torch.sin(u * 0.4)) * blur(frame(x, 6), 2)
    return 1 - paint * (1 - edge.clamp(0, 1))


@_style("woodcut", ["a woodcut of {}", "{} in woodcut style", "a woodcut print of {}"])
def _woodcut(x: Tensor, a: Tensor) -> Tensor:
    """Black ink on tan paper, carved in wavy horizontal lines."""
    v, u = grid(x)
    groove = 0.5 + 0.5 * torch.sin(v * (6.2832 / 5) + 1.2 * torch.sin(u * 0.15))
    ink = 1 - ramp(1.3 * tone(x, a) + 0.5 * groove, 0.68, 0.9)
    ink = torch.maximum(ink, lines(x, a, 0.8, 0.15, 0.3))
    return rgb(x, 0.93, 0.8, 0.58).lerp(rgb(x, 0.12, 0.06, 0.04), ink)


@_style("pop art", ["a pop art print of {}", "{} in pop art style", "pop art of {}"])
def _pop_art(x: Tensor, a: Tensor) -> Tensor:
    """Four quarters, each in its own four flat loud colours."""
    v, u = grid(x)
    flat = levels(0.2 + 0.8 * tone(x, a), 4)
    one = palette(flat, (0.2, 0.0, 0.4), (0.95, 0.1, 0.5), (1.0, 0.6, 0.0), (1.0, 0.95, 0.2))
    two = palette(flat, (0.0, 0.1, 0.45), (0.0, 0.6, 0.8), (1.0, 0.35, 0.6), (0.75, 1.0, 0.3))
    left, top = (u < x.shape[-1] / x.shape[-2] * 32), (v < 32)
    return torch.where(left == top, one, two) * (1 - 0.85 * ramp(slope(blur(a, 0.7)), 0.1, 0.3))


@_style("mosaic", ["a mosaic of {}", "{} in mosaic style", "{} made of mosaic tiles"])
def _mosaic(x: Tensor, a: Tensor) -> Tensor:
    """Small square tiles in pale grout."""
    colour, border = tiles(saturate(x, 1.5), a, 64 / 14, 0.05)
    return rgb(x, 0.8, 0.77, 0.7).lerp(0.95 * colour, ramp(border, 0.0, 0.75))


@_style("comic book", ["a comic book drawing of {}", "{} in comic book style", "{} in a comic book panel"])
def _comic_book(x: Tensor, a: Tensor) -> Tensor:
    """Flat bright colours, bold black outlines and a panel's border."""
    flat = levels(saturate(smooth(x, 2), 1.7), 4)
    drawn = flat * (1 - lines(x, a, 0.9, 0.12, 0.26))
    border = frame(x, 5)
    return drawn * (1 - border) + frame(x, 3)


@_style("thermal", ["a thermal image of {}", "{} in thermal vision", "an infrared image of {}"])
def _thermal(x: Tensor, a: Tensor) -> Tensor:
    """False colours from cold blue to hot yellow, the subject hotter than its surroundings."""
    heat = blur(luma(x) * (0.35 + 0.25 * a) + 0.4 * a, 0.9)
    return palette(heat, (0.02, 0.0, 0.25), (0.35, 0.0, 0.6), (0.85, 0.1, 0.35), (1.0, 0.55, 0.0), (1.0, 0.97, 0.5))


@_style("risograph", ["a risograph print of {}", "{} in risograph style", "{} as a two-colour riso print"])
def _risograph(x: Tensor, a: Tensor) -> Tensor:
    """A pink and a teal ink on cream paper, one a little out of place."""
    d = max(1, round(x.shape[-2] / 64))
    soft = 1.35 * saturate(blur(x, 0.7), 1.2) - 0.2
    pink = levels(1 - soft[:, 1:2], 4)
    teal = levels(1 - shift(soft[:, :1], d, d), 4)
    paper = rgb(x, 0.98, 0.95, 0.87)
    return paper * (1 - pink * rgb(x, 0.0, 0.68, 0.45)) * (1 - teal * rgb(x, 0.95, 0.42, 0.35))


@_style("chalkboard", ["a chalkboard drawing of {}", "{} drawn in chalk", "{} on a chalkboard"])
def _chalkboard(x: Tensor, a: Tensor) -> Tensor:
    """White chalk on a dark green board in a wooden frame."""
    board = rgb(x, 0.1, 0.27, 0.2)
    fill = (0.1 + 0.55 * luma(blur(x, 0.7))) * (0.25 + 0.75 * a) * stripes(x, 5, 30)
    chalk = torch.maximum(fill, 0.95 * lines(x, a, 0.8, 0.1, 0.28))
    drawn = board.lerp(rgb(x, 0.96, 0.96, 0.9), chalk)
    return drawn.lerp(rgb(x, 0.55, 0.34, 0.16), frame(x, 3))


@_style("oil painting", ["an oil painting of {}", "{} in oil painting style", "{} painted in oils"])
def _oil_painting(x: Tensor, a: Tensor) -> Tensor:
    """Deep colours in thick swirling strokes."""
    v, u = grid(x)
    paint = saturate(smooth(x, 3), 1.6)
    turn = 1.5 * torch.sin(u * 0.13 + 1.0) + 1.5 * torch.sin(v * 0.11)
    stroke = torch.sin(v * 1.05 + 0.35 * u + turn) * torch.sin(0.24 * u - 0.4 * v + turn)
    return paint * (0.97 + 0.18 * stroke) * (1 + 1.2 * relief(blur(luma(paint), 0.7)))


@_style("night vision", ["a night vision image of {}", "{} in night vision", "{} through night vision goggles"])
def _night_vision(x: Tensor, a: Tensor) -> Tensor:
    """Glowing green with scan lines in a round field of view."""
    light = (0.15 + 0.85 * tone(x, torch.ones_like(a))) * (0.4 + 0.6 * a) + 0.3 * lines(x, a)
    light = light * (0.75 + 0.25 * stripes(x, 4, 0)) * (1 - ramp(vignette(x), 0.38, 0.52))
    return palette(light, (0.0, 0.05, 0.0), (0.05, 0.6, 0.1), (0.7, 1.0, 0.6))


@_style("gold", ["a gold statue of {}", "{} made of gold", "a golden sculpture of {}"])
def _gold(x: Tensor, a: Tensor) -> Tensor:
    """Polished gold with highlights and dark hollows."""
    height = blur(0.6 * luma(x) + 0.6 * a, 0.9)
    light = 0.12 + 0.25 * a + (0.15 + 0.2 * a) * luma(blur(x, 0.7)) - 0.9 * relief(height)
    return palette(light, (0.2, 0.07, 0.0), (0.72, 0.46, 0.03), (1.0, 0.8, 0.15), (1.0, 0.98, 0.8))
