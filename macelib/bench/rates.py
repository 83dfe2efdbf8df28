"""What stages 1 and 3 have to compute, part by part, and the rate at which this machine could.

A part is `sums` (X and G), `own` (the concepts' own tokens), `LoRAs` (D C, and M = Σ B D C), `solves` (R, R̃, S⁻¹) or
`weights` (M S⁻¹ and W R̃, layer by layer).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shapes:
    """Layer widths and prompt sizes; the defaults are those of SD v1.4."""

    out: tuple[int, ...] = (320,) * 4 + (640,) * 4 + (1280,) * 12 + (640,) * 6 + (320,) * 6  # to_k and to_v, 16 layers
    width: int = 768  # d
    tokens: int = 77  # T
    prompts: int = 30  # per concept
    own: int = 2  # tokens of the concept in a prompt

    def weights(self) -> list[Tensor]:
        """Random W of every layer, (out, d) float32."""
        g = torch.Generator().manual_seed(0)
        return [torch.randn(out, self.width, generator=g) / self.width**0.5 for out in self.out]


def operations(shapes: Shapes, concepts: int) -> dict[str, float]:
    """By part, the multiplications and additions that it cannot do without, half of each symmetric sum counted."""
    n, m = shapes.prompts * (shapes.tokens - shapes.own), shapes.prompts * shapes.own
    d, L, rows = shapes.width, len(shapes.out), sum(shapes.out)
    return {
        "sums": concepts * 3 * n * d**2,  # X; G
        "own": concepts * m * d**2,
        "LoRAs": concepts * (2 * L * d**2 + 4 * m * L * d + 2 * rows * d),  # D C; M
        "solves": 3 * (d**3 / 3 + 2 * d**3),  # R, R̃, S⁻¹: a factor and two triangular solves each
        "weights": 4 * rows * d**2,  # M S⁻¹ and W R̃
    }


def peak(dtype: torch.dtype, size: int = 2048, times: int = 4) -> float:
    """The machine's own rate in products of square matrices: operations a second, the best of some."""
    a, b = torch.randn(2, size, size, dtype=dtype)
    out, best = a @ b, 0.0
    for _ in range(times):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


@dataclass
class Spent:
    """Seconds by part."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Add what passes inside to a part."""
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def profile(self, needed: Mapping[str, float], rate: float) -> str:
        """Every part's share of the time, and its own rate as a share of `rate` (operations a second)."""
        whole = sum(self.seconds.values())
        return ", ".join(
            f"{part} {seconds / whole:.0%} of the time, at {needed[part] / seconds / rate:.0%}"
            for part, seconds in self.seconds.items()
        )
