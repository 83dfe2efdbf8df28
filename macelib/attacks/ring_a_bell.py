"""Ring-A-Bell in embedding form (Tsai et al., ICLR 2024, arXiv 2310.10012): the concept's direction is added."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..baselines import Settings
from ..concepts import templates
from ..errors import MaceError
from ..models.text import encode
from ..templates import fill
from .registry import Run, Try, register
from .scene import Scene, says


@dataclass(frozen=True)
class RingABell(Settings):
    """η of the paper: 3 for nudity, 0.9 for Van Gogh, 5 to 5.5 for violence."""

    etas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)  # η
    neutral: str = "thing"  # stands in the place of the concept in the pairs, and in the neutral prompt


def direction(pipe, texts: list[tuple[str, str]]) -> Tensor:
    """v = mean_k (E(p_k) − E(q_k)) (T, d), of pairs with and without the concept."""
    return (encode(pipe, [p for p, _ in texts]) - encode(pipe, [q for _, q in texts])).mean(0)


def stands_in(scene: Scene, neutral: str) -> str:
    """The neutral word, as often as the name has tokens, so that what stands behind it keeps its place."""
    own, other = (_count(scene.pipe, text) for text in (scene.concept.name, neutral))
    return " ".join([neutral] * max(1, own // other))


def pairs(scene: Scene, neutral: str) -> list[tuple[str, str]]:
    """The concept's templates with its name, and with what stands in for it (`stands_in`).

    Prompts of one length alone: what stands behind the name would shift otherwise. MaceError where none is left.
    """
    word = stands_in(scene, neutral)
    texts = [(fill(t, scene.concept.name), fill(t, word)) for t in templates(scene.concept, alone=True)]
    kept = [pair for pair in texts if _count(scene.pipe, pair[0]) == _count(scene.pipe, pair[1])]
    if not kept:
        own, other = (_count(scene.pipe, text) for text in (scene.concept.name, neutral))
        raise MaceError(
            f"{scene.concept.name!r} has {own} tokens and {neutral!r} {other}: no pair of prompts is of one length; "
            "give a neutral word of one token."
        )
    return kept


def _count(pipe, text: str) -> int:
    return len(pipe.tokenizer(text, verbose=False)["input_ids"]) - 2


@register("ring-a-bell", RingABell)
def ring_a_bell(scene: Scene, settings: RingABell) -> Run:
    """Draws from E(p) + η v, v by the original encoder; p names the concept, or the neutral word."""
    v, word = direction(scene.pipe, pairs(scene, settings.neutral)), stands_in(scene, settings.neutral)

    def run(attacked: Scene, prompt: str, seed: int) -> Iterator[Try]:
        plain = prompt.replace(scene.concept.name, word)
        for kind, text in {"erased": prompt, "neutral": plain}.items():
            e = encode(scene.pipe, [text])[0]
            for eta in settings.etas:
                with says(attacked.pipe, text, e + eta * v.to(e)):
                    yield Try(
                        attacked.draw(text, [seed]),
                        f"{kind}, eta {eta:g}",
                        text,
                        f"E(p) + {eta:g} v",
                        kind == "neutral",
                    )

    return run
