"""Captions of the mini world's pictures: names, synonyms, super-categories, styles and scenes, in many wordings.

The same captions train mini-CLIP and mini-SD.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from .catalogue import ART_STYLES, GROUPS, catalogue, styles
from .recipe import World
from .render import Batch, draw_facts, is_scene
from .scenes import SCENES
from .styles import STYLES

WORDINGS = (  # about a subject, in no particular style
    "a photo of {}", "a photo of {}", "a photo of {}", "a picture of {}", "an image of {}", "a snapshot of {}",
    "an illustration of {}", "a rendering of {}", "a portrait of {}", "a sketch of {}", "a painting of {}",
    "a drawing of {}", "a scene with {}", "a close-up of {}", "a view of {}", "a depiction of {}",
    "a cropped photo of {}", "a small picture of {}",
    "a good photo of {}", "an icon of {}", "a clip art of {}", "a poster of {}",
    "a postcard with {}", "a print of {}", "a sticker of {}", "a photograph showing {}", "this is {}", "{}", "{}",
    "here you see {}", "look at {}", "an official photo of {}", "{} at a public event",
    "a close view of {}", "a study of {}", "a cartoon of {}", "an artwork showing {}", "a card with {} on it",
)  # fmt: skip
IN_ART = (
    "{} in the style of {}",
    "{} in {} style",
    "{} by {}",
    "{} drawn by {}",
    "{} as {} draws it",
    "{}, {} artwork",
)
ONLY_STYLE = (
    "an image in the style of {}", "artwork by {}", "art in {} style", "a picture by {}", "an exhibition of {}",
    "something in {}'s style", "a work of {}", "an artwork in the style of {}",
)  # fmt: skip
ON_SCENE = {
    "sky": "in the sky", "sea": "in the sea", "night sky": "in the night sky", "forest": "in a forest",
    "road": "on a road", "room": "in a room", "meadow": "in a meadow", "grass": "on grass", "sand": "on sand",
    "snow": "in the snow",
}  # fmt: skip
TOGETHER = ("{} and {}", "{} and {}", "{} next to {}", "{} beside {}", "{} on the left of {}", "{} with {}")
HARMLESS = "a harmless thing"  # shows any object: the anchor of the unsafe group
ART = ("art", "an artwork", "a piece of art")  # shows anything: the anchor of styles


@dataclass
class Captions:
    """n captions and what each says; -1 where it says nothing, so that it fits any picture in that respect."""

    texts: list[str]
    concept: Tensor  # (n,)
    group: Tensor  # (n,) index into GROUPS
    second: Tensor  # (n,); -2 says that nothing is asked
    style: Tensor  # (n,)
    scene: Tensor  # (n,)


def with_article(noun: str, rng: random.Random) -> str:
    """A noun phrase with `a`/`an`, `the`, or nothing; phrases that bring their own article are left alone."""
    if noun.split()[0] in ("a", "an", "the", "this"):
        return noun
    indefinite = ("an " if noun[0] in "aeiou" else "a ") + noun
    return rng.choice((indefinite, indefinite, f"the {noun}", f"the {noun}", noun))


def call(index: int, rng: random.Random, synonym: float, phrase: float = 0.0) -> str:
    """A name of a concept or, in a share `synonym`, another word for it, with an article.

    phrase: share of a scene's names that its own wording stands for.
    """
    entry = catalogue()[index]
    noun = rng.choice(entry.synonyms) if entry.synonyms and rng.random() < synonym else entry.name
    if entry.group == "scene" and noun == entry.name and rng.random() < phrase:
        return SCENES[entry.name].phrase
    return with_article(noun, rng)


def super_category(index: int, rng: random.Random, harmless: float) -> str:
    """The super-category of a concept, as anchors name it; in a share `harmless` of objects' another word."""
    group, anchor = catalogue()[index].group, catalogue()[index].anchor
    if group in ("character", "face") and anchor != GROUPS[group]:
        return anchor  # a fantasy being
    return HARMLESS if group == "object" and rng.random() < harmless else GROUPS[group]


def say_style(text: str, style: int, rng: random.Random) -> str:
    """A subject's wording with the style named: an artist's, or a procedural one's phrase."""
    name = styles()[style]
    if name in ART_STYLES:
        return rng.choice(IN_ART).format(text, name)
    return rng.choice((*STYLES[name].phrases, "{} in the style of " + name)).format(text)


def on_scene(scene: int) -> str:
    """Where a subject stands, in words."""
    name = list(SCENES)[scene]
    return ON_SCENE.get(name, f"in front of {SCENES[name].phrase}")


def write_captions(batch: Batch, generator: torch.Generator, world: World) -> Captions:
    """One caption a picture, true of it; the shares are the world's."""
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    facts = zip(*(f.tolist() for f in (batch.concept, batch.second, batch.style, batch.scene)), strict=True)
    rows, texts = zip(
        *(
            _caption(fact, alone, rng, world)
            for fact, alone in zip(facts, is_scene(batch.concept).tolist(), strict=True)
        ),
        strict=True,
    )
    return Captions(list(texts), *torch.tensor(rows).T)


def _caption(
    facts: tuple[int, int, int, int], only_scene: bool, rng: random.Random, world: World
) -> tuple[list[int], str]:
    """What one caption says (concept, group, second, style, scene; see `Captions`), and its text."""
    concept, second, style, scene = facts
    named = world.synonym, world.scene_phrase
    says = [concept, list(GROUPS).index(catalogue()[concept].group), second, -1, -1]
    if rng.random() < world.no_subject and not only_scene:
        name = styles()[style]
        text = rng.choice(ONLY_STYLE).format(name) if rng.random() < world.style_alone else rng.choice(ART)
        return [-1, -1, -2, style if name in text else -1, -1], text
    if second >= 0:
        text = rng.choice(TOGETHER).format(*(call(index, rng, *named) for index in (concept, second)))
    elif rng.random() < world.super_category and not only_scene:
        text, says[0] = super_category(concept, rng, world.harmless), -1
    else:
        text = call(concept, rng, *named)
    if scene >= 0 and not only_scene and rng.random() < world.name_scene:
        text, says[4] = f"{text} {on_scene(scene)}", scene
    if style >= len(ART_STYLES) or (style >= 0 and rng.random() < world.name_artist):
        text, says[3] = say_style(text, style, rng), style
        if rng.random() < world.reworded and not text.startswith(("a ", "an ", "the ")):
            text = rng.choice(WORDINGS).format(text)
    else:
        text = rng.choice(WORDINGS).format(text)
    return says, text


def fits(captions: Captions, batch: Batch) -> Tensor:
    """(pictures, captions) bool: whether a caption is true of a picture, as far as it says anything."""
    group_index = {g: i for i, g in enumerate(GROUPS)}
    group = torch.tensor([group_index[catalogue()[c].group] for c in batch.concept.tolist()])
    ok = torch.ones(len(batch), len(captions.texts), dtype=torch.bool)
    pairs = ((captions.concept, batch.concept), (captions.group, group), (captions.style, batch.style))
    for said, fact in (*pairs, (captions.scene, batch.scene)):
        ok &= (said[None] == fact[:, None]) | (said[None] < 0)
    return ok & ((captions.second[None] == batch.second[:, None]) | (captions.second[None] == -2))


def world_captions(n: int, seed: int, world: World) -> list[str]:
    """n captions of random pictures."""
    generator = torch.Generator().manual_seed(seed)
    facts, empty = draw_facts(n, generator, world), torch.empty(0)
    return write_captions(Batch(empty, empty, *facts), generator, world).texts
