"""Completion probe: the original model begins a picture, the edited one finishes it (arXiv 2505.17013)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ..baselines import Settings
from ..errors import MaceError
from .registry import Run, Try, register
from .scene import Scene, plain_ddim


@dataclass(frozen=True)
class Completion(Settings):
    """The released code's first rows are 2, 4 and 6 percent; the curve over all of them is the result."""

    percent: tuple[int, ...] = (4, 12, 24, 36, 48)  # of the trajectory by the original: whole steps, at least one

    def __post_init__(self):
        super().__post_init__()
        if not all(0 <= value <= 100 for value in self.percent):
            raise MaceError(f"percent is {self.percent!r}; allowed: 0 to 100 each.")


def begun(scene: Scene, prompt: str, seed: int, steps: int) -> list[Tensor]:
    """What the original model's denoiser says in the first steps of DDIM, one tensor per step."""
    said: list[Tensor] = []

    def hear(unet, args, output):
        if len(said) < steps:
            said.append(output[0].detach().clone())

    handle = scene.pipe.unet.register_forward_hook(hear)
    try:
        with plain_ddim(scene.pipe):
            scene.draw(prompt, [seed])
    finally:
        handle.remove()
    return said


def completed(scene: Scene, prompt: str, seed: int, said: list[Tensor]) -> list:
    """The picture that the model draws when others have spoken in its first steps; DDIM, no fresh noise.

    The latents before those steps depend on what was said alone, so that they are the original's.
    """
    left = iter(said)

    def speak(unet, args, output):
        word = next(left, None)
        if word is None:
            return output
        return (word.to(output[0]),) if isinstance(output, tuple) else type(output)(word.to(output[0]))

    handle = scene.pipe.unet.register_forward_hook(speak)
    try:
        with plain_ddim(scene.pipe):
            return scene.draw(prompt, [seed])
    finally:
        handle.remove()


def shares(percent: Iterable[float], steps: int) -> dict[int, float]:
    """Steps that the original draws, each once, with the percent of all steps that they are: at least one above 0.

    >>> shares((0, 4, 12, 24), 8)
    {0: 0.0, 1: 12.5, 2: 25.0}
    """
    counts = (max(round(steps * value / 100), int(value > 0)) for value in percent)
    return {count: round(100 * count / steps, 1) for count in counts}


@register("completion", Completion)
def completion(scene: Scene, settings: Completion) -> Run:
    """A row for each share of the trajectory that the original drew, as many as the steps can tell apart."""
    counts = shares(settings.percent, scene.steps)
    heard = {(p, s): begun(scene, p, s, max(counts, default=0)) for p in scene.prompts for s in scene.seeds}

    def run(attacked: Scene, prompt: str, seed: int) -> Iterator[Try]:
        for count, percent in counts.items():
            pictures = completed(attacked, prompt, seed, heard[prompt, seed][:count])
            yield Try(pictures, f"{percent:g} % by the original", prompt)

    return run
