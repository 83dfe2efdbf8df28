"""Which captions a prior is made of: those that an erasure would move (SPEED's influence-based prior filtering).

Li et al., ICLR 2026, arXiv 2503.07392.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..concepts import Concept
from ..config import EraseConfig
from ..models.entrances import denoiser
from ..models.text import read
from .fuse import less_identity
from .refine import concept_sums, solve_refinement
from .rounds import layers_gram

CHUNK = 64  # captions per pass of the text encoder


def step_gram(pipe, concepts: Sequence[Concept], config: EraseConfig) -> Tensor:
    """A = (R − I)ᵀ H (R − I), R of Eq. 2 without a prior: eᵀ A e = Σ_l ‖W_l (R − I) e‖², what the step does to e.

    H = Σ_l W_lᵀ W_l. (d, d) float64 on the CPU. config: as filled.
    """
    own = [(config.weight(c.kind), config.of(c.kind).refine) for c in concepts]
    sums = sum(w * torch.stack(concept_sums(pipe, c, r.products)[:2]) for c, (w, r) in zip(concepts, own, strict=True))
    X, G = sums.cpu()
    step = less_identity(solve_refinement(X, G, lambda0=sum(w * r.lambda0 for w, r in own)).R)
    return step.T @ layers_gram(denoiser(pipe)) @ step


def influences(pipe, captions: Sequence[str], A: Tensor, progress: Callable[[int, int], None] | None = None) -> Tensor:
    """√(Σ_tokens eᵀ A e) of each caption, (n,) float64: the norm of what the step changes over all its tokens."""
    found = []
    for start in range(0, len(captions), CHUNK):
        if progress:
            progress(start, len(captions))
        e = read(pipe, captions[start : start + CHUNK], CHUNK).tokens.cpu().double()  # (n, T, d)
        found.append(((e @ A.to(e)) * e).sum((1, 2)).clamp(min=0).sqrt())
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
