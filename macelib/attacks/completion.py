"""Completion probe: the original model begins a picture, the edited one finishes it (arXiv 2505.17013)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from ..baselines import Settings
from ..errors import MaceError
from .registry import Run, Try, check_some, register
from .scene import Scene, in_ddim


@dataclass(frozen=True)
class Completion(Settings):
    """The released code has 2, 4 and 6 percent of 50 steps; the curve from 0 to 25 percent is the result."""

    percent: tuple[int, ...] = (0, 4, 8, 12, 24)  # of the trajectory by the original: whole steps, above 0 at least one
    steps: int = 25  # of its own DDIM, however many other pictures have

    def __post_init__(self):
        super().__post_init__()
        check_some(self, percent=0, steps=1)
        if max(self.percent) > 100:
            raise MaceError(f"percent is {self.percent!r}; allowed: 0 to 100 each.")


def begun(scene: Scene, prompt: str, seed: int, steps: int) -> list[Tensor]:
    """What the original model's denoiser says in the first steps of DDIM, one tensor per step."""
    said: list[Tensor] = []

    def hear(unet, args, output):
        if len(said) < steps:
            said.append(output[0].detach().clone())

    handle = scene.pipe.unet.register_forward_hook(hear)
    try:
        with in_ddim(scene):
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
        with in_ddim(scene):
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


def _lasting(scene: Scene, settings: Completion) -> Scene:
    return replace(scene, steps=settings.steps)


@register("completion", Completion, plain=lambda scene, settings: in_ddim(_lasting(scene, settings)))
def completion(scene: Scene, settings: Completion) -> Run:
    """A row for each share of the trajectory that the original drew, as many as the steps can tell apart."""
    counts, scene = shares(settings.percent, settings.steps), _lasting(scene, settings)
    heard = {(p, s): begun(scene, p, s, max(counts)) for p in scene.prompts for s in scene.seeds}

    def run(attacked: Scene, prompt: str, seed: int) -> Iterator[Try]:
        for count, percent in counts.items():
            pictures = completed(_lasting(attacked, settings), prompt, seed, heard[prompt, seed][:count])
            yield Try(pictures, f"{percent:g} % by the original", prompt)

    return run
