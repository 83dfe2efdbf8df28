"""Painted backgrounds: simple scenes that vary a little with the seed, and plain colours.

Every painter is vectorised over n images (n, 3, S, S) in 0..1; `v` runs down and `u` right, both in 0..1. All chance
comes from the `torch.Generator` that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

Colour = tuple[float, float, float]
Painter = Callable[["Canvas"], Tensor]


@dataclass(frozen=True)
class Canvas:
    """What a painter needs: how many images, their size in pixels, and the generator."""

    n: int
    size: int
    generator: Generator

    @property
    def grid(self) -> tuple[Tensor, Tensor]:
        """Coordinates v (1, 1, S, 1) and u (1, 1, 1, S) of the pixels' centres, in 0..1."""
        t = (torch.arange(self.size, device=self.generator.device) + 0.5) / self.size
        return t.view(1, 1, -1, 1), t.view(1, 1, 1, -1)

    def draw(self, low: float, high: float, channels: int = 1) -> Tensor:
        """Uniform numbers (n, channels, 1, 1) in low..high."""
        g = self.generator
        return low + (high - low) * torch.rand(self.n, channels, 1, 1, generator=g, device=g.device)

    def colour(self, *rgb: float, spread: float = 0.05) -> Tensor:
        """A colour (n, 3, 1, 1) that varies by up to `spread` in each channel."""
        base = torch.tensor(rgb, device=self.generator.device).view(1, 3, 1, 1)
        return base + self.draw(-spread, spread) + self.draw(-spread, spread, 3) / 2

    def ramp(self, x: Tensor, low: float | Tensor = 0.0, width: float = 0.03) -> Tensor:
        """Soft step: 0 below `low`, 1 above `low` + `width`."""
        t = ((x - low) / width).clamp(0, 1)
        return t * t * (3 - 2 * t)

    def disc(self, cv: Tensor, cu: Tensor, rv: Tensor | float, ru: Tensor | float, soft: float = 0.3) -> Tensor:
        """Coverage (n, 1, S, S) of an ellipse with centre (cv, cu) and radii (rv, ru)."""
        v, u = self.grid
        return self.ramp(1 - (((v - cv) / rv).square() + ((u - cu) / ru).square()), 0.0, soft)

    def wave(self, x: Tensor, low: float, high: float) -> Tensor:
        """sin(f x + phase) with f in low..high radians over the picture and a random phase, per image."""
        return torch.sin(self.draw(low, high) * x + self.draw(0, 6.3))


@dataclass(frozen=True)
class Scene:
    """A scene's concept name, caption phrase, synonyms, and painter."""

    name: str
    phrase: str
    synonyms: list[str]
    painter: Painter


SCENES: dict[str, Scene] = {}


def paint_scene(name: str, n: int, size: int, generator: Generator) -> Tensor:
    """`n` pictures (n, 3, size, size) in 0..1 of scene `name`, drawn with `generator`; ValueError if unknown."""
    if name not in SCENES:
        raise ValueError(f"unknown scene {name!r}: the scenes are {', '.join(SCENES)}")
    return SCENES[name].painter(Canvas(n, size, generator)).clamp(0, 1).expand(n, 3, size, size).contiguous()


def plain_background(n: int, size: int, generator: Generator) -> Tensor:
    """`n` plain pictures (n, 3, size, size) in 0..1: a muted or bright colour each, a third with a gradient."""
    c = Canvas(n, size, generator)
    v, u = c.grid
    hue, strength, value = c.draw(0, 6.2832), c.draw(0.05, 0.8), c.draw(0.6, 1.0)
    thirds = torch.tensor([0.0, 2.0944, 4.1888], device=generator.device).view(1, 3, 1, 1)
    colour = value * (1 - strength * (0.5 - 0.5 * torch.cos(hue - thirds)))
    gradient = (c.draw(0, 1) < 1 / 3) * c.draw(-0.3, 0.3)
    return (colour * (1 + gradient * (v - 0.5)) + 0 * u).clamp(0, 1).expand(n, 3, size, size).contiguous()


def _scene(name: str, phrase: str, synonyms: list[str]) -> Callable[[Painter], Painter]:
    """Enter a painter in SCENES."""

    def enter(painter: Painter) -> Painter:
        SCENES[name] = Scene(name, phrase, synonyms, painter)
        return painter

    return enter


@_scene("sky", "the sky", ["blue sky", "cloudy sky"])
def _sky(c: Canvas) -> Tensor:
    """Blue, paler below, with a few white clouds."""
    v, _ = c.grid
    x = c.colour(0.25, 0.55, 0.92).lerp(c.colour(0.68, 0.87, 0.99, spread=0.02), v)
    for band in range(3):
        cv, cu, width = c.draw(0.1 + 0.3 * band, 0.3 + 0.3 * band), c.draw(0, 1), c.draw(0.14, 0.24)
        for du, dv, r in ((-0.7, 0.02, 0.7), (0.0, -0.03, 1.0), (0.75, 0.02, 0.65)):
            x = x.lerp(torch.ones_like(x), 0.9 * c.disc(cv + dv, cu + du * width, 0.4 * r * width, r * width, 0.6))
    return x


@_scene("sea", "the sea", ["ocean", "open water"])
def _sea(c: Canvas) -> Tensor:
    """Blue-green water in waves up to a high horizon, pale sky above."""
    v, u = c.grid
    horizon = c.draw(0.15, 0.3)
    depth = ((v - horizon) / (1 - horizon)).clamp_min(0)
    water = c.colour(0.1, 0.52, 0.68).lerp(c.colour(0.02, 0.2, 0.45), depth)
    crest = torch.sin(45 * depth.sqrt() + 1.2 * c.wave(u, 8, 14) + c.draw(0, 6.3))
    water = water + 0.14 * c.ramp(crest, 0.3, 0.7)
    return c.colour(0.82, 0.92, 0.97, spread=0.03).lerp(water, c.ramp(v, horizon))


@_scene("grass", "grass", ["lawn", "turf"])
def _grass(c: Canvas) -> Tensor:
    """Green all over, in rows of upright blades."""
    v, u = c.grid
    x = c.colour(0.42, 0.72, 0.2).lerp(c.colour(0.16, 0.48, 0.1), v)
    blade = (u * c.draw(7, 9) + c.draw(0, 1) + 0.1 * c.wave(v, 5, 9)) % 1.0
    for k in range(5):  # rows from far to near, each with pointed tips
        point = ((blade + 0.37 * k) % 1.0 - 0.5).abs()
        row = c.colour(0.45 - 0.06 * k, 0.74 - 0.07 * k, 0.2 - 0.02 * k, spread=0.02)
        x = x.lerp(row, c.ramp(v, 0.2 * k - 0.08 + 0.3 * point, 0.04))
    return x


@_scene("sand", "sand", ["desert sand", "sand dunes"])
def _sand(c: Canvas) -> Tensor:
    """Warm yellow sand in curved ripples and dunes."""
    v, u = c.grid
    x = c.colour(0.95, 0.83, 0.56).lerp(c.colour(0.85, 0.66, 0.38), v)
    bend = 0.09 * c.wave(u, 4, 8)
    ripple = torch.sin((v + bend) * c.draw(34, 42) + c.draw(0, 6.3))
    dune = c.ramp(v, c.draw(0.4, 0.65) + 0.12 * c.wave(u, 3, 6), 0.02)
    return (x + 0.04 * ripple) * (1 - 0.14 * dune)


@_scene("snow", "snow", ["snowy ground", "snowfield"])
def _snow(c: Canvas) -> Tensor:
    """White rounded hills under a grey-blue sky with large flakes."""
    v, u = c.grid
    x = c.colour(0.62, 0.72, 0.84).expand(c.n, 3, c.size, c.size)
    for k, white in enumerate((0.86, 0.93, 0.99)):
        edge = c.draw(0.42, 0.5) + 0.17 * k + 0.06 * c.wave(u, 3, 7)
        x = x.lerp(c.colour(white - 0.04, white - 0.01, 1.0, spread=0.01), c.ramp(v, edge))
    for k in range(10):
        flake = c.disc(c.draw(0, 0.5), c.draw(k / 10, (k + 1) / 10), 0.028, 0.028, 0.5)
        x = x.lerp(torch.ones_like(x), flake)
    return x


@_scene("night sky", "the night sky", ["starry sky", "starry night"])
def _night_sky(c: Canvas) -> Tensor:
    """Dark blue with stars and a moon."""
    v, _ = c.grid
    x = c.colour(0.03, 0.04, 0.16, spread=0.02).lerp(c.colour(0.12, 0.14, 0.36, spread=0.03), v)
    x = x.expand(c.n, 3, c.size, c.size)
    star = c.colour(1.0, 1.0, 0.85, spread=0.0)
    for k in range(20):
        row, column = divmod(k, 5)
        cv, cu = c.draw(row / 4, (row + 1) / 4), c.draw(column / 5, (column + 1) / 5)
        radius = c.draw(0.016, 0.034)
        x = x.lerp(star, c.disc(cv, cu, radius, radius, 0.8))
    cv, cu = c.draw(0.12, 0.3), c.draw(0.15, 0.85)
    return x.lerp(c.colour(0.98, 0.95, 0.75, spread=0.02), c.disc(cv, cu, 0.1, 0.1))


@_scene("forest", "a forest", ["woods", "woodland"])
def _forest(c: Canvas) -> Tensor:
    """Brown trunks in front of dark green, leaves above and moss below."""
    v, u = c.grid
    x = c.colour(0.2, 0.42, 0.22).lerp(c.colour(0.45, 0.6, 0.38), (1 - (v - 0.55).abs() * 2).clamp(0, 1))
    for k in range(5):
        cu, half = c.draw(0.2 * k + 0.02, 0.2 * k + 0.18), c.draw(0.025, 0.045)
        trunk = c.ramp(half - (u - cu).abs()) * c.ramp(c.draw(0.8, 0.95) - v)
        x = x.lerp(c.colour(0.33, 0.21, 0.12, spread=0.04), trunk)
    leaves = c.draw(0.2, 0.3) + 0.07 * torch.sin(u * c.draw(18, 26) + c.draw(0, 6.3)).abs()
    x = x.lerp(c.colour(0.08, 0.3, 0.1, spread=0.03), c.ramp(leaves - v))
    return x.lerp(c.colour(0.16, 0.3, 0.1, spread=0.03), c.ramp(v, 0.86 + 0.03 * c.wave(u, 5, 9)))


@_scene("road", "a road", ["street", "highway"])
def _road(c: Canvas) -> Tensor:
    """Grey asphalt narrowing to the horizon with a dashed line, green on both sides."""
    v, u = c.grid
    horizon, vanish = c.draw(0.25, 0.38), c.draw(0.4, 0.6)
    near = ((v - horizon) / (1 - horizon)).clamp_min(0)
    ground = c.colour(0.5, 0.66, 0.32).expand(c.n, 3, c.size, c.size)
    off = (u - vanish).abs()
    ground = ground.lerp(c.colour(0.36, 0.36, 0.39, spread=0.03), c.ramp(0.04 + 0.46 * near - off))
    dash = c.ramp(torch.sin(18 * near.sqrt() + c.draw(0, 6.3)), -0.2, 0.4) * c.ramp(
        0.005 + 0.05 * near - off, 0.0, 0.02
    )
    ground = ground.lerp(c.colour(0.98, 0.9, 0.5, spread=0.02), dash)
    return c.colour(0.75, 0.86, 0.95, spread=0.03).lerp(ground, c.ramp(v, horizon))


@_scene("room", "a room", ["indoor room", "living room"])
def _room(c: Canvas) -> Tensor:
    """A plain wall with a window, a skirting board and a wooden floor."""
    v, u = c.grid
    floor, cu, cv = c.draw(0.68, 0.78), c.draw(0.22, 0.78), c.draw(0.27, 0.33)
    x = c.colour(0.9, 0.8, 0.68, spread=0.09).expand(c.n, 3, c.size, c.size)
    inside = 0.17 - torch.maximum((u - cu).abs(), (v - cv).abs())
    bars = 0.02 - torch.minimum((u - cu).abs(), (v - cv).abs())
    x = x.lerp(c.colour(1.0, 1.0, 1.0, spread=0.01), c.ramp(inside + 0.03, 0.0, 0.01))
    x = x.lerp(c.colour(0.6, 0.82, 0.95), c.ramp(inside, 0.0, 0.01) * (1 - c.ramp(bars, 0.0, 0.01)))
    x = x.lerp(c.colour(0.97, 0.95, 0.92, spread=0.02), c.ramp(v, floor - 0.05, 0.01))
    boards = 0.05 * c.ramp(torch.sin((u - 0.5) * 30 / (0.4 + v)), 0.0, 1.0)
    return x.lerp(c.colour(0.56, 0.36, 0.2) + boards, c.ramp(v, floor, 0.01))


@_scene("meadow", "a meadow", ["flower field", "field of flowers"])
def _meadow(c: Canvas) -> Tensor:
    """Light green dotted with red, yellow, white and violet flowers, under a strip of sky."""
    v, u = c.grid
    horizon = c.draw(0.16, 0.26) + 0.03 * c.wave(u, 4, 8)
    field = c.colour(0.62, 0.82, 0.38).lerp(c.colour(0.36, 0.66, 0.22), v)
    x = c.colour(0.68, 0.86, 0.98, spread=0.02).lerp(field, c.ramp(v, horizon))
    colours: tuple[Colour, ...] = ((0.93, 0.2, 0.25), (1.0, 0.85, 0.15), (0.98, 0.97, 0.98), (0.65, 0.35, 0.85))
    for k in range(24):
        row, column = divmod(k, 6)
        cv, cu = c.draw(0.33 + 0.17 * row, 0.43 + 0.17 * row), c.draw(column / 6, (column + 1) / 6)
        radius = 0.03 + 0.008 * row
        x = x.lerp(c.colour(*colours[(k + row) % 4]), c.disc(cv, cu, radius, radius, 0.5))
    return x


@_scene("sunset", "a sunset", ["dusk", "evening sky"])
def _sunset(c: Canvas) -> Tensor:
    """Violet to orange with a low bright sun over dark land."""
    v, u = c.grid
    horizon, cu = c.draw(0.72, 0.82), c.draw(0.25, 0.75)
    top, middle, low = c.colour(0.38, 0.2, 0.52), c.colour(0.93, 0.4, 0.38), c.colour(1.0, 0.75, 0.3)
    t = (v / horizon).clamp(0, 1)
    x = torch.where(t < 0.5, top.lerp(middle, 2 * t), middle.lerp(low, 2 * t - 1)).expand(c.n, 3, c.size, c.size)
    cv = horizon - c.draw(0.02, 0.14)
    x = x.lerp(c.colour(1.0, 0.95, 0.65, spread=0.02), c.disc(cv, cu, 0.15, 0.15, 0.2))
    return x.lerp(c.colour(0.17, 0.08, 0.16, spread=0.03), c.ramp(v, horizon + 0.02 * c.wave(u, 5, 10)))


@_scene("mountains", "the mountains", ["mountain range", "alpine peaks"])
def _mountains(c: Canvas) -> Tensor:
    """Grey-blue peaks with snow caps over green foothills."""
    v, u = c.grid
    x = c.colour(0.7, 0.86, 0.97, spread=0.03).expand(c.n, 3, c.size, c.size)
    for k in range(3):
        cu, peak = c.draw(0.05 + 0.3 * k, 0.35 + 0.3 * k), c.draw(0.12, 0.32)
        depth = v - peak - 1.25 * (u - cu).abs()
        rock = c.colour(0.45, 0.48, 0.58).lerp(c.colour(0.34, 0.36, 0.46, spread=0.02), c.ramp(u - cu))
        snow = c.ramp(0.2 + 0.03 * torch.sin(u * 40) - (v - peak))
        x = x.lerp(rock.lerp(torch.ones_like(rock), snow), c.ramp(depth))
    return x.lerp(c.colour(0.32, 0.5, 0.28), c.ramp(v, c.draw(0.76, 0.84) + 0.04 * c.wave(u, 4, 8)))
