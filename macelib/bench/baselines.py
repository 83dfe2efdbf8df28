"""Time of the other methods' closed forms, the text encoder's passes apart."""

import time

from ..baselines import build
from ..concepts import Concept
from ..models.tiny import tiny_pipeline

CLOSED = ("uce", "rece", "speed", "oce", "dp")


def closed_forms(concepts: int = 100, width: int = 768, progress=None) -> list[str]:
    """A line for each method: seconds for so many concepts, beside as many names to keep, at the text's width d.

    The denoiser is a small one with random weights: what a solve costs hangs on d and the number of names.
    """
    pipe, tell, lines = tiny_pipeline("sd", width=width), progress or (lambda *_: None), []
    erased = [Concept(f"ship {i}", "sea", "object") for i in range(concepts)]
    begun, spent = [0.0], [0.0]
    hooks = [
        pipe.text_encoder.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter())),
        pipe.text_encoder.register_forward_hook(lambda *_: spent.append(time.perf_counter() - begun[-1])),
    ]
    for i, name in enumerate(CLOSED):
        before, start = sum(spent), time.perf_counter()
        build(pipe, erased, name, kept=[f"dog {i}" for i in range(concepts)])
        whole, text = time.perf_counter() - start, sum(spent) - before
        lines.append(
            f"{name}, {concepts} concepts, d = {width}: {whole - text:.2f} s, and {text:.2f} s to read the text"
        )
        tell("closed forms", i + 1, len(CLOSED), name)
    for hook in hooks:
        hook.remove()
    return lines
