"""The toolbox of the procedural styles: blurs, edges, palettes and fixed lattices on batches of images.

Images are (N, 3, H, W) in 0..1. Lengths are stated in units: pixels at a height of 64, and in proportion at others. All
arithmetic is per image and per pixel, so that a batch gives exactly what its images give one by one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

UNIT = 64  # the height in pixels at which lengths are stated


def scale(x: Tensor) -> float:
    """Pixels per unit of length: 1 at 64 px."""
    return x.shape[-2] / UNIT


def ramp(x: Tensor, low: float, high: float) -> Tensor:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def rgb(x: Tensor, *colour: float) -> Tensor:
    """A colour in 0..1 as (1, 3, 1, 1), like `x` in type and device."""
    return torch.tensor(colour, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)


def luma(x: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) of colours (N, 3, H, W)."""
    return 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def saturate(x: Tensor, factor: float) -> Tensor:
    """Move colours away from grey by `factor`."""
    grey = luma(x)
    return (grey + factor * (x - grey)).clamp(0, 1)


def shift(x: Tensor, dy: int, dx: int) -> Tensor:
    """out[y, x] = in[y + dy, x + dx], edges replicated."""
    h, w, r = x.shape[-2], x.shape[-1], max(abs(dy), abs(dx))
    return F.pad(x, (r, r, r, r), mode="replicate")[..., r + dy : r + dy + h, r + dx : r + dx + w]


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with `sigma` in units."""
    sigma = sigma * scale(x)
    r = max(1, math.ceil(2.5 * sigma))
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-r, r + 1)]
    total = sum(weights)
    h, w = x.shape[-2:]
    p = F.pad(x, (0, 0, r, r), mode="replicate")
    x = sum(p[..., k : k + h, :] * (v / total) for k, v in enumerate(weights))
    p = F.pad(x, (r, r, 0, 0), mode="replicate")
    return sum(p[..., k : k + w] * (v / total) for k, v in enumerate(weights))


def slope(x: Tensor) -> Tensor:
    """Size (N, 1, H, W) of the gradient over all channels, per unit of length."""
    gx, gy = shift(x, 0, 1) - shift(x, 0, -1), shift(x, 1, 0) - shift(x, -1, 0)
    return (gx * gx + gy * gy).sum(1, keepdim=True).sqrt() * (0.5 * scale(x))


def tone(x: Tensor, a: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) in 0..1 with more local contrast, the background paler than the subject."""
    light = blur(luma(x), 0.6)
    light = light + 0.6 * (light - blur(light, 8))
    return light.lerp(0.5 + 0.45 * light, 1 - a).clamp(0, 1)


def lines(x: Tensor, a: Tensor, sigma: float = 0.7, low: float = 0.08, high: float = 0.3) -> Tensor:
    """Ink (N, 1, H, W) in 0..1 along the edges of the image and the subject's outline."""
    outline = 1.5 * slope(blur(a, sigma))
    return ramp(torch.maximum(slope(blur(x, sigma)), outline), low, high)


def relief(height: Tensor) -> Tensor:
    """Light (N, 1, H, W) from the top left on a surface, 0 where it is flat."""
    d = max(1, round(scale(height)))
    return shift(height, d, d) - shift(height, -d, -d)


def levels(x: Tensor, n: int) -> Tensor:
    """Round values to `n` levels, with a short ramp between them."""
    t = x.clamp(0, 1) * (n - 1)
    return (t.floor() + ramp(t - t.floor(), 0.4, 0.6)) / (n - 1)


def palette(t: Tensor, *colours: tuple[float, float, float]) -> Tensor:
    """Colours (N, 3, H, W) for t (N, 1, H, W) in 0..1, linear between equally spaced `colours`."""
    t = t.clamp(0, 1) * (len(colours) - 1)
    return sum((1 - (t - k).abs()).clamp_min(0) * rgb(t, *c) for k, c in enumerate(colours))


def grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates v (down), u (right) of the pixels' centres in units, (1, 1, H, 1) and (1, 1, 1, W)."""
    h, w = x.shape[-2:]
    v = (torch.arange(h, dtype=x.dtype, device=x.device) + 0.5) / scale(x)
    u = (torch.arange(w, dtype=x.dtype, device=x.device) + 0.5) / scale(x)
    return v.view(1, 1, h, 1), u.view(1, 1, 1, w)


def stripes(x: Tensor, pitch: float, degrees: float) -> Tensor:
    """A wave in 0..1 with `pitch` units from crest to crest, its crests turned by `degrees` from horizontal."""
    v, u = grid(x)
    angle = math.radians(degrees)
    return 0.5 + 0.5 * torch.cos((2 * math.pi / pitch) * (v * math.cos(angle) - u * math.sin(angle)))


def frame(x: Tensor, width: float) -> Tensor:
    """1 within `width` units of the picture's border, else 0; (1, 1, H, W)."""
    v, u = grid(x)
    h, w = x.shape[-2] / scale(x), x.shape[-1] / scale(x)
    return (torch.minimum(torch.minimum(v, h - v), torch.minimum(u, w - u)) < width).to(x)


def vignette(x: Tensor) -> Tensor:
    """0 in the middle, 1 in the corners; (1, 1, H, W)."""
    v, u = grid(x)
    h, w = x.shape[-2] / scale(x), x.shape[-1] / scale(x)
    return ((2 * v / h - 1).square() + (2 * u / w - 1).square()) / 2


def tiles(x: Tensor, a: Tensor, pitch: float, jitter: float) -> tuple[Tensor, Tensor]:
    """Cut the image into cells around a fixed lattice, apart for subject and background: each cell's colour
    (N, 3, H, W), and the distance in units of every pixel to the nearest border between cells (1, 1, H, W)."""
    v, u = grid(x)
    i, j = (v / pitch).floor(), (u / pitch).floor()
    near = []  # distance to each of the nine nearest seeds, and where they are
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            p = (i + di) + 0.31 * (j + dj)
            sv = (i + di + 0.5 + jitter * torch.sin(12.9898 * p + 4.1 * (j + dj))) * pitch
            su = (j + dj + 0.5 + jitter * torch.sin(78.233 * p + 1.7 * (i + di))) * pitch
            near.append(torch.stack([(sv - v).square() + (su - u).square(), sv, su]))
    near = torch.stack(near)  # (9, 3, 1, 1, H, W)
    order = near[:, 0].sqrt().sort(0)
    sv, su = (near[:, k].gather(0, order.indices[:1])[0, 0, 0] for k in (1, 2))  # (H, W)
    row = (sv * scale(x)).long().clamp(0, x.shape[-2] - 1)
    column = (su * scale(x)).long().clamp(0, x.shape[-1] - 1)
    ground = blur(1 - a, pitch / 4) + 1e-4
    subject = blur(a, pitch / 4) + 1e-4
    inside = (blur(x * a, pitch / 4) + 1e-4 * x) / subject
    outside = (blur(x * (1 - a), pitch / 4) + 1e-4 * x) / ground
    colour = torch.lerp(outside[..., row, column], inside[..., row, column], ramp(a, 0.3, 0.7))
    return colour, (order.values[1] - order.values[0]) / 2


def smooth(x: Tensor, radius: int) -> Tensor:
    """Kuwahara's filter: every pixel becomes the mean of the calmest of the four squares around it, softly chosen."""
    r = max(1, round(radius * scale(x)))
    p = F.pad(x, (r, r, r, r), mode="replicate")
    mean = F.avg_pool2d(p, r + 1, stride=1)  # (N, 3, H + r, W + r)
    spread = (F.avg_pool2d(p * p, r + 1, stride=1) - mean * mean).sum(1, keepdim=True).clamp_min(0)
    weight = (spread + 2e-3).pow(-4)
    h, w = x.shape[-2:]
    corners = [(slice(k, k + h), slice(m, m + w)) for k in (0, r) for m in (0, r)]
    total = sum(weight[..., s, t] for s, t in corners)
    return sum(mean[..., s, t] * weight[..., s, t] for s, t in corners) / total
