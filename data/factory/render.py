"""Pictures of the mini world: drawings on grounds, single or in twos, with exact masks, and the facts about each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .catalogue import ART_STYLES, COMPANIONS, SIZE, atlas, catalogue, names, styles
from .recipe import World
from .scenes import SCENES, paint_scene, plain_background
from .styles import apply_style


@dataclass
class Batch:
    """n pictures and what is in them; -1 stands for nothing (no second subject, a plain background)."""

    images: Tensor  # (n, 3, 64, 64) in 0..1
    alpha: Tensor  # (n, 1, 64, 64) in 0..1, coverage of the first subject
    concept: Tensor  # (n,) index into the catalogue
    second: Tensor  # (n,) index of the right-hand subject, or -1
    style: Tensor  # (n,) index into styles(), or -1 for a scene that no artist drew
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
) -> Batch:
    """Draw the pictures that these facts describe, with a little variation of size and position.

    `turn` is the largest rotation in radians (the generator never saw any; the judge did). Under a procedural style
    lies a drawing by any of the artists.
    """
    n, drawn = len(concept), len(atlas())
    scene = torch.where(concept >= drawn, concept - drawn, scene)
    ground = backgrounds(scene, generator)
    art = torch.where(style < len(ART_STYLES), style.clamp(min=0), artists(n, generator))
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


def artists(n: int, generator: torch.Generator) -> Tensor:
    """(n,) random artists, all alike."""
    return torch.randint(len(ART_STYLES), (n,), generator=generator)


def subject_weights(world: World) -> tuple[Tensor, Tensor, Tensor]:
    """How often a concept is the one subject (all,), one of any two (all,), one of two companions (all,).

    Weights are such that every concept, scenes included, is a subject equally often over all pictures: what a concept
    appears in pairs is taken off its single pictures. ValueError where pairs leave a companion no single picture.
    """
    count, drawn = len(catalogue()), torch.tensor([bool(e.code_point) for e in catalogue()])
    known = torch.ones(count, dtype=torch.bool)
    known[[names()[name] for name in world.without]] = False
    companion = torch.zeros(count, dtype=torch.bool)
    companion[[names()[name] for name in COMPANIONS]] = True
    any_two, two = (drawn & known).float(), (companion & known).float()
    slots = (1 + world.pairs + world.companions) / known.sum()  # subjects a picture, for each concept
    in_pairs = 2 * world.pairs * any_two / any_two.sum() + 2 * world.companions * two / two.sum()
    single = torch.where(known, slots - in_pairs, 0.0)
    if (single < 0).any():
        raise ValueError("the shares of pairs leave companions no single picture: lower companions or pairs")
    return single, any_two, two


def draw_facts(n: int, generator: torch.Generator, world: World) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random facts of n pictures: concept, second, style, scene, each (n,), in the world's proportions."""
    single, any_two, two = subject_weights(world)
    kind = torch.rand(n, generator=generator)
    concept = torch.multinomial(single, n, replacement=True, generator=generator)
    second = torch.full((n,), -1)
    ends = (world.companions, world.companions + world.pairs)
    for chosen, weights in ((kind < ends[0], two), ((kind >= ends[0]) & (kind < ends[1]), any_two)):
        rows = chosen.nonzero().flatten()
        if len(rows):
            both = torch.multinomial(weights.expand(len(rows), -1), 2, generator=generator)  # two that differ
            concept[rows], second[rows] = both.T
    alone = is_scene(concept)
    ground = torch.randint(len(SCENES), (n,), generator=generator)
    scene = torch.where((torch.rand(n, generator=generator) < world.scenic) & ~alone, ground, -1)
    filtered = torch.rand(n, generator=generator) < world.procedural
    procedural = torch.randint(len(ART_STYLES), len(styles()), (n,), generator=generator)
    art = torch.where(alone, -1, artists(n, generator))
    return concept, second, torch.where(filtered, procedural, art), scene


def sample(n: int, generator: torch.Generator, world: World, turn: float = 0.0) -> Batch:
    """n random pictures of the world."""
    return compose(*draw_facts(n, generator, world), generator, turn)


def is_scene(concept: Tensor) -> Tensor:
    """(n,) whether the concept is a scene (nothing stands in front of it)."""
    return concept >= sum(bool(e.code_point) for e in catalogue())
