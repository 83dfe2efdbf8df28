"""Ring-A-Bell in embedding form (Tsai et al., ICLR 2024, arXiv 2310.10012): the concept's direction is added."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..baselines import Settings
from ..concepts import templates
from ..errors import MaceError
from ..models.text import encode
from ..reading import phrase
from ..templates import fill
from .registry import Run, Try, check_some, register
from .scene import Scene, count_tokens, reworded, says


@dataclass(frozen=True)
class RingABell(Settings):
    """η of the paper: 3 for nudity, 0.9 for Van Gogh, 5 to 5.5 for violence."""

    etas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)  # η
    neutral: str = "thing"  # stands in the place of the concept in the pairs, and in the neutral prompt

    def __post_init__(self):
        super().__post_init__()
        check_some(self, etas=0)
        phrase(self.neutral, "neutral")


def direction(pipe, texts: list[tuple[str, str]]) -> Tensor:
    """v = mean_k (E(p_k) − E(q_k)) (T, d), of pairs with and without the concept."""
    return (encode(pipe, [p for p, _ in texts]) - encode(pipe, [q for _, q in texts])).mean(0)


def stands_in(scene: Scene, neutral: str) -> str:
    """The neutral word, as often as the name has tokens, so that what stands behind it keeps its place."""
    own, other = (count_tokens(scene.pipe, text) for text in (scene.concept.name, neutral))
    return " ".join([neutral] * max(1, own // other))


def pairs(scene: Scene, neutral: str) -> list[tuple[str, str]]:
    """The concept's templates with its name, and with what stands in for it (`stands_in`).

    Prompts of one length alone: what stands behind the name would shift otherwise. MaceError where none is left.
    """
    word = stands_in(scene, neutral)
    texts = [(fill(t, scene.concept.name), fill(t, word)) for t in templates(scene.concept, alone=True)]
    kept = [(p, q) for p, q in texts if count_tokens(scene.pipe, p) == count_tokens(scene.pipe, q)]
    if not kept:
        own, other = (count_tokens(scene.pipe, text) for text in (scene.concept.name, neutral))
        raise MaceError(
            f"{scene.concept.name!r} has {own} tokens and {neutral!r} {other}: no pair of prompts is of one length; "
            "give a neutral word of one token."
        )
    return kept


@register("ring-a-bell", RingABell, embeds=True)
def ring_a_bell(scene: Scene, settings: RingABell) -> Run:
    """Draws from E(p) + η v, v by the original encoder; p names the concept, or the neutral word.

    `pre` of a neutral prompt is what that prompt shows un-attacked.
    """
    v, word = direction(scene.pipe, pairs(scene, settings.neutral)), stands_in(scene, settings.neutral)

    def run(attacked: Scene, prompt: str, seed: int) -> Iterator[Try]:
        plain = reworded(prompt, scene.concept.name, word)
        for kind, text in {"erased": prompt, "neutral": plain}.items():
            if kind == "neutral":
                yield Try(attacked.draw(text, [seed]), "un-attacked", text, plain=True)
            e = encode(scene.pipe, [text])[0]
            for eta in settings.etas:
                with says(attacked.pipe, text, e + eta * v.to(e)):
                    yield Try(attacked.draw(text, [seed]), f"{kind}, eta {eta:g}", text, f"E(p) + {eta:g} v")

    return run
