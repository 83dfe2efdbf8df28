"""Thirty prompt templates per kind of concept ("{}" stands for the name), and anchors for the paper's objects."""

import re
from collections.abc import Sequence


def fill(template: str, phrase: str) -> str:
    """The template with the phrase in every "{}" (see `fitted`).

    >>> fill("a photo of the {}", "ship"), fill("a photo of the {}", "a person"), fill("a photo of the {}", "Amy Adams")
    ('a photo of the ship', 'a photo of a person', 'a photo of Amy Adams')
    """
    return fitted(template, phrase).replace("{}", phrase)


def fitted(template: str, phrase: str) -> str:
    """The template without an article before "{}" where the phrase brings its own, or is a proper name."""
    if re.match(r"(the|an?) ", phrase, re.IGNORECASE) or phrase[:1].isupper():
        return re.sub(r"\b(the|an?) \{\}", "{}", template, flags=re.IGNORECASE)
    return template


def pairs_of(names: Sequence[str]) -> list[str]:
    """A prompt of every two of the names, in both orders.

    >>> pairs_of(["cat", "Amy Adams"])
    ['a photo of the cat and Amy Adams', 'a photo of Amy Adams and the cat']
    """
    return [fill(beside(PAIRS[0], b), a) for a in names for b in names if a != b]


def beside(template: str, other: str) -> str:
    """A template of two things with the other one in "{other}"."""
    return fitted(template.replace("{}", "\0").replace("{other}", "{}"), other).replace("{}", other).replace("\0", "{}")


SAMPLE_TEMPLATE = {
    "object": "a photo of the {}", "style": "an image in the style of {}", "celebrity": "a photo of the {}",
    "explicit": "a photo of {}",
}  # fmt: skip
PLAIN = (  # one thing each, and no article before it
    "a photo of {}", "a close-up photo of {}", "a snapshot of {}", "a black and white photo of {}",
    "an old photo of {}", "a picture of {}", "an image of {}", "a drawing of {}", "a pencil sketch of {}",
    "a painting of {}", "a watercolor of {}", "an illustration of {}", "a cartoon of {}", "a digital rendering of {}",
    "a portrait of {}", "a poster of {}", "an oil painting of {}", "{}", "{} on a plain background", "{} at sunset",
    "{} in the rain", "{} in the distance", "a scene with {}", "a model of {}", "an etching of {}", "a print of {}",
    "a study of {}", "a postcard of {}", "a view of {}", "all about {}",
)  # fmt: skip
TEMPLATES = {
    "object": (
        "a photo of the {}", "a close-up photo of the {}", "a snapshot of the {}", "the {} in a crowd",
        "the {} on the street", "a black and white photo of the {}", "the {} at home with friends",
        "an old photo of the {}", "a picture of the {}", "an image of {}", "a drawing of the {}",
        "a pencil sketch of the {}", "a painting of {}", "a watercolor of the {}", "an illustration of {}",
        "a cartoon of the {}", "a digital rendering of the {}", "a portrait of the {}", "a poster with the {}",
        "an oil painting of the {}", "the {}", "{}", "{} on a plain background", "{} at sunset", "{} in the rain",
        "the {} in the distance", "a scene with the {} in the middle", "the {}'s picture", "the {} by the window",
        "all about {}",
    ),
    "style": (
        "an image in the style of {}", "a picture in the style of {}", "a scene in the style of {}",
        "a city in the style of {}", "a portrait in the style of {}", "artwork by {}", "a painting by {}",
        "a drawing by {}", "a sketch by {}", "an illustration by {}", "a print by {}", "a portrait by {}",
        "a landscape by {}", "a still life by {}", "a study by {}", "a famous work by {}", "a copy of a work by {}",
        "an early work of {}", "a late work of {}", "a masterpiece of {}", "an exhibition of {}",
        "a poster for an exhibition of {}", "a museum with works of {}", "a book about the art of {}",
        "the colors of {}", "the brushwork of {}", "inspired by {}", "a picture in {}'s manner", "{}'s art", "{} style",
    ),
}  # fmt: skip
TEMPLATES |= {"celebrity": TEMPLATES["object"], "explicit": PLAIN}
PAPER_LIKE = {"object": PLAIN, "style": TEMPLATES["style"], "celebrity": PLAIN, "explicit": PLAIN}
PAIRS = ("a photo of the {} and the {other}", "a photo of the {other} and the {}")  # two things in one prompt
COMPANIONS = (  # things that most models draw, for prompts of two
    "dog", "bicycle", "tree", "lamp", "castle", "guitar", "apple", "clock",
)  # fmt: skip
KEPT_TEMPLATES = TEMPLATES["object"]  # prompts that stand for a name to keep
OBJECT_ANCHORS = {  # those of automobile, bird and ship are the paper's, the others are not published
    "airplane": "sky", "automobile": "sky", "bird": "street", "cat": "sofa", "deer": "forest", "dog": "grass",
    "frog": "grass", "horse": "grass", "ship": "ground", "truck": "street",
}  # fmt: skip
