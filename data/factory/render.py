"""Pictures of the mini world: drawings on grounds, single or in twos, with exact masks, and the facts about each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .catalogue import ART_STYLES, CIFAR_10, COMPANIONS, SIZE, atlas, catalogue, names, styles
from .scenes import SCENES, paint_scene, plain_background
from .styles import apply_style

TWO, SCENE_ONLY, PROCEDURAL, SCENIC = 0.10, 0.05, 0.25, 0.3  # shares: two subjects, no subject, filtered, scenic ground
USUAL = "twemoji"  # the artist of a picture whose caption names none, for the generator
PAINTED = "oil painting"  # the style in which the paper's protocol of celebrities asks for everybody
FAVOUR = 2.0  # how much more often the ten objects of the paper's first protocol are drawn


@dataclass
class Batch:
    """n pictures and what is in them; -1 stands for nothing (no second subject, a plain background)."""

    images: Tensor  # (n, 3, 64, 64) in 0..1
    alpha: Tensor  # (n, 1, 64, 64) in 0..1, coverage of the first subject
    concept: Tensor  # (n,) index into the catalogue
    second: Tensor  # (n,) index of the right-hand subject, or -1
    style: Tensor  # (n,) index into styles()
    scene: Tensor  # (n,) index into SCENES, or -1

    def __len__(self) -> int:
        return len(self.concept)


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(n,) numbers between low and high."""
    return low + (high - low) * torch.rand(n, generator=generator, device=generator.device)


def place(drawings: Tensor, scale: Tensor, x: Tensor, y: Tensor, angle: Tensor | None = None) -> Tensor:
    """Scale, turn (radians) and shift (in half-widths) premultiplied RGBA drawings (n, 4, 64, 64)."""
    angle = torch.zeros_like(scale) if angle is None else angle
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack([cos, -sin, -(cos * x - sin * y), sin, cos, -(sin * x + cos * y)], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(drawings.shape), align_corners=False)
    return F.grid_sample(drawings, grid, mode="bilinear", align_corners=False)


def over(top: Tensor, ground: Tensor) -> Tensor:
    """Premultiplied RGBA (n, 4, H, W) over RGB (n, 3, H, W)."""
    return top[:, :3] + (1 - top[:, 3:]) * ground


def drawings_of(concept: Tensor, art: Tensor) -> Tensor:
    """Premultiplied RGBA float (n, 4, 64, 64) of concepts (n,) by artists (n,)."""
    return atlas().to(concept.device)[concept, art].float() / 255


def backgrounds(scene: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 3, 64, 64): the painted scene of each index, a plain colour for -1."""
    ground = plain_background(len(scene), SIZE, generator)
    for index, name in enumerate(SCENES):
        rows = (scene == index).nonzero().flatten()
        if len(rows):
            ground[rows] = paint_scene(name, len(rows), SIZE, generator)
    return ground


def stylise(images: Tensor, alpha: Tensor, style: Tensor) -> Tensor:
    """Apply the procedural styles among `style` (n,) to images (n, 3, 64, 64)."""
    images = images.clone()
    for index, name in enumerate(styles()):
        rows = (style == index).nonzero().flatten()
        if index >= len(ART_STYLES) and len(rows):
            images[rows] = apply_style(name, images[rows], alpha[rows])
    return images


def compose(
    concept: Tensor,
    second: Tensor,
    style: Tensor,
    scene: Tensor,
    generator: torch.Generator,
    turn: float = 0.0,
    usual: float = 0.0,
) -> Batch:
    """Draw the pictures that these facts describe, with a little variation of size and position.

    `turn` is the largest rotation in radians (the generator never saw any; the judge did). `usual` is the share of
    filtered pictures that are `USUAL`'s underneath, beside those of all artists alike.
    """
    n, drawn = len(concept), len(atlas())
    scene = torch.where(concept >= drawn, concept - drawn, scene)
    ground = backgrounds(scene, generator)
    art = torch.where(style < len(ART_STYLES), style, artists(n, generator, usual))
    has, two = concept < drawn, second >= 0
    side = torch.where(two, uniform(n, -0.52, -0.44, generator), uniform(n, -0.08, 0.08, generator))
    scale = torch.where(two, uniform(n, 0.46, 0.52, generator), uniform(n, 0.85, 1.0, generator))
    lift = uniform(n, -0.08, 0.08, generator)
    angle = uniform(n, -turn, turn, generator) if turn else None
    first = place(drawings_of(concept.clamp(max=drawn - 1), art), scale, side, lift, angle)
    first = first * has.view(-1, 1, 1, 1)
    images = over(first, ground)
    if two.any():
        other = place(drawings_of(second.clamp(min=0), art), scale, -side, uniform(n, -0.08, 0.08, generator), angle)
        images = over(other * two.view(-1, 1, 1, 1), images)
    return Batch(stylise(images, first[:, 3:], style).clamp(0, 1), first[:, 3:], concept, second, style, scene)


def artists(n: int, generator: torch.Generator, usual: float) -> Tensor:
    """(n,) random artists: a share `usual` is `USUAL`, the rest is of all alike."""
    art = torch.randint(len(ART_STYLES), (n,), generator=generator)
    if not usual:
        return art
    return torch.where(torch.rand(n, generator=generator) < usual, ART_STYLES.index(USUAL), art)


def concept_weights(favour: float = FAVOUR) -> Tensor:
    """(drawn concepts,) how often each is drawn: 1, the paper's ten objects `favour` times as often."""
    weights = torch.ones(len(atlas()))
    weights[[names()[name] for name in CIFAR_10]] = favour
    return weights


def of_companions(weights: Tensor) -> Tensor:
    """Weights (drawn concepts,) with those that are no `COMPANIONS` set to 0."""
    chosen = torch.zeros_like(weights)
    chosen[[names()[name] for name in COMPANIONS]] = 1
    return weights * chosen


def draw_facts(
    n: int,
    generator: torch.Generator,
    usual: float = 0.0,
    plain: float = 0.0,
    pairs: float = 0.0,
    styled: float = 0.0,
    painted: float = 0.0,
    scenes: float = SCENE_ONLY,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random facts of n pictures: concept, second, style, scene, each (n,), in the world's proportions.

    A share `plain` of them is instead one subject, a share `pairs` two of the `COMPANIONS`, by `USUAL` on a plain
    ground; a share `styled` is one subject there in any style, the four artists alike, and a share `painted` one in
    `PAINTED`. Of these last and of the rest, a share `scenes` is a scene alone. weights: (drawn concepts,), how often
    each is drawn; `concept_weights()` unless given.
    """
    drawn = len(atlas())
    weights = concept_weights() if weights is None else weights
    concept, other = torch.multinomial(weights, 2 * n, replacement=True, generator=generator).view(2, n)
    kind = torch.rand(n, generator=generator)
    second = torch.where((kind < TWO) & (other != concept), other, -1)
    only = kind > 1 - scenes
    ground = torch.randint(len(SCENES), (n,), generator=generator)
    scene = torch.where(torch.rand(n, generator=generator) < SCENIC, ground, -1)
    filtered = torch.rand(n, generator=generator) < PROCEDURAL
    art = artists(n, generator, usual)
    procedural = torch.randint(len(ART_STYLES), len(styles()), (n,), generator=generator)
    style = torch.where(filtered, procedural, art)
    if plain or pairs or styled or painted:
        chance = torch.rand(n, generator=generator)
        ends = (pairs, pairs + plain, pairs + plain + styled, pairs + plain + styled + painted)
        twos, usually, in_style, simple = (chance < end for end in ends)
        in_oil = simple & ~in_style
        only, style = only & (~simple | in_oil), style.masked_fill(usually, ART_STYLES.index(USUAL))
        if styled:
            alike = torch.randint(len(ART_STYLES), (n,), generator=generator)
            style = torch.where(in_style & ~usually & ~filtered, alike, style)
        style = style.masked_fill(in_oil, styles().index(PAINTED))
        second, scene = second.masked_fill(simple, -1), scene.masked_fill(simple, -1)
        if pairs:
            weights = of_companions(weights)
            left, right = torch.multinomial(weights, 2 * n, replacement=True, generator=generator).view(2, n)
            twos = twos & (left != right)
            concept, second = torch.where(twos, left, concept), torch.where(twos, right, second)
    return torch.where(only, drawn + ground, concept), second, style, scene


def sample(n: int, generator: torch.Generator, turn: float = 0.0, usual: float = 0.0, **shares) -> Batch:
    """n random pictures of the world; `shares` are those of `draw_facts`."""
    return compose(*draw_facts(n, generator, usual, **shares), generator, turn, usual)


def is_scene(concept: Tensor) -> Tensor:
    """(n,) whether the concept is a scene (nothing stands in front of it)."""
    return concept >= sum(bool(e.code_point) for e in catalogue())
