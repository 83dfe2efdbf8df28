"""Captions of the mini world's pictures: names, synonyms, super-categories, styles and scenes, in many wordings.

The same captions train mini-CLIP and mini-SD and, without pictures, serve as prior statistics (`world_captions`).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from .catalogue import ART_STYLES, GROUPS, catalogue, styles
from .render import USUAL, Batch, draw_facts, is_scene
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
SYNONYM, SUPER, NO_SUBJECT, NAME_ARTIST, NAME_SCENE = 0.3, 0.08, 0.03, 0.25, 0.75  # shares


@dataclass
class Captions:
    """n captions and what each says; -1 where it says nothing, so that it fits any picture in that respect."""

    texts: list[str]
    concept: Tensor  # (n,)
    group: Tensor  # (n,) index into GROUPS
    second: Tensor  # (n,); -2 says that nothing is asked
    style: Tensor  # (n,)
    scene: Tensor  # (n,)
    subjects: list[str]  # what a caption calls its first subject; "" where it names none


def with_article(noun: str, rng: random.Random) -> str:
    """A noun phrase with `a`/`an`, `the`, or nothing; phrases that bring their own article are left alone."""
    if noun.split()[0] in ("a", "an", "the", "this"):
        return noun
    indefinite = ("an " if noun[0] in "aeiou" else "a ") + noun
    return rng.choice((indefinite, indefinite, f"the {noun}", f"the {noun}", noun))


def call(index: int, rng: random.Random) -> str:
    """A name or synonym of a concept, with an article."""
    entry = catalogue()[index]
    noun = rng.choice(entry.synonyms) if entry.synonyms and rng.random() < SYNONYM else entry.name
    if entry.group == "scene" and noun == entry.name and rng.random() < 0.6:
        return SCENES[entry.name].phrase
    return with_article(noun, rng)


def super_category(index: int, rng: random.Random) -> str:
    """The super-category of a concept, as anchors name it."""
    group, anchor = catalogue()[index].group, catalogue()[index].anchor
    if group in ("character", "face") and anchor != GROUPS[group]:
        return anchor  # a fantasy being
    return HARMLESS if group == "object" and rng.random() < 0.5 else GROUPS[group]


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


def write_captions(batch: Batch, generator: torch.Generator, usual: bool = False, wider: float = SUPER) -> Captions:
    """One caption a picture; with `usual`, one that names no artist is of a picture by `USUAL`.

    wider: share of single subjects that are called by their super-category.
    """
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    group_index = {g: i for i, g in enumerate(GROUPS)}
    rows, texts, subjects = [], [], []
    facts = zip(*(f.tolist() for f in (batch.concept, batch.second, batch.style, batch.scene)), strict=True)
    scenes = is_scene(batch.concept).tolist()
    for (concept, second, style, scene), only_scene in zip(facts, scenes, strict=True):
        group = group_index[catalogue()[concept].group]
        says = [concept, group, second, -1, -1]
        procedural = style >= len(ART_STYLES)
        if rng.random() < NO_SUBJECT and not only_scene:
            name = styles()[style]
            texts.append(rng.choice(ONLY_STYLE).format(name) if rng.random() < 0.8 else rng.choice(ART))
            subjects.append("")
            rows.append([-1, -1, -2, style if name in texts[-1] else -1, -1])
            continue
        subject = ""
        if second >= 0:
            wording, subject = rng.choice(TOGETHER), call(concept, rng)
            text = wording.format(subject, call(second, rng))
        elif rng.random() < wider and not only_scene:
            text = super_category(concept, rng)
            says[0] = -1
        else:
            text = subject = call(concept, rng)
        if scene >= 0 and not only_scene and rng.random() < NAME_SCENE:
            text, says[4] = f"{text} {on_scene(scene)}", scene
        if procedural or (usual and styles()[style] != USUAL) or rng.random() < NAME_ARTIST:
            text, says[3] = say_style(text, style, rng), style
            if rng.random() < 0.3 and not text.startswith(("a ", "an ", "the ")):
                text = rng.choice(WORDINGS).format(text)
        else:
            text = rng.choice(WORDINGS).format(text)
        texts.append(text)
        subjects.append(subject)
        rows.append(says)
    columns = torch.tensor(rows).T
    return Captions(texts, *columns, subjects)


def about_others(captions: Captions, seed: int) -> list[str]:
    """The same captions with a random concept's name in the place of their first subject, where one is named."""
    rng, drawn, texts = random.Random(seed), [entry.name for entry in catalogue() if entry.code_point], []
    for text, subject in zip(captions.texts, captions.subjects, strict=True):
        noun = with_article(rng.choice(drawn), rng)
        texts.append(re.sub(rf"\b{re.escape(subject)}\b", noun, text, count=1) if subject else text)
    return texts


def fits(captions: Captions, batch: Batch) -> Tensor:
    """(pictures, captions) bool: whether a caption is true of a picture, as far as it says anything."""
    group_index = {g: i for i, g in enumerate(GROUPS)}
    group = torch.tensor([group_index[catalogue()[c].group] for c in batch.concept.tolist()])
    ok = torch.ones(len(batch), len(captions.texts), dtype=torch.bool)
    pairs = ((captions.concept, batch.concept), (captions.group, group), (captions.style, batch.style))
    for said, fact in (*pairs, (captions.scene, batch.scene)):
        ok &= (said[None] == fact[:, None]) | (said[None] < 0)
    return ok & ((captions.second[None] == batch.second[:, None]) | (captions.second[None] == -2))


def world_captions(n: int = 6000, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """n captions of random pictures and, for each, the names of the concepts and styles that its picture is of."""
    generator = torch.Generator().manual_seed(seed)
    concept, second, style, scene = draw_facts(n, generator)
    empty = torch.empty(0)
    captions = write_captions(Batch(empty, empty, concept, second, style, scene), generator)
    named = []
    for c, s, t in zip(captions.concept.tolist(), captions.second.tolist(), captions.style.tolist(), strict=True):
        named.append([catalogue()[i].name for i in (c, s) if i >= 0] + ([styles()[t]] if t >= 0 else []))
    return captions.texts, named
