"""Stage 1 of the pooled text: Eq. 2 once more, with one row per prompt and a map of its own.

A pooled vector u says what the whole prompt says, so it is residual information by nature: every concept's is mapped.

    R_u = (X + λ1 P + λ0 I)(G + λ1 P + λ0 I)⁻¹,   X = Σ u^g u^fᵀ,  G = Σ u^f u^fᵀ,  P = Σ u^p u^pᵀ

A zero vector, which stands for no prompt at all, stays zero.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def pooled_sums(rows: Iterable[tuple[Tensor, float, float]], p: int) -> Tensor:
    """Σ X_i, Σ G_i: (2, p, p) float64, from (rows (2, n, p), weight, strength) of every concept.

    rows: u^f, of the prompts, and u^g, of the same prompts with the anchor. Strength s maps u^f onto
    (1 − s) u^f + s u^g.
    """
    total = torch.zeros(2, p, p, dtype=torch.float64)
    for pair, weight, strength in rows:
        f, g = pair.double()
        total[0] += weight * torch.lerp(f, g, strength).T @ f
        total[1] += weight * f.T @ f
    return total


def share_left(R: Tensor, rows: Tensor) -> float:
    """What the map leaves of the difference between a concept and its anchor: ||R u^f − u^g|| / ||u^f − u^g||.

    0: nothing is left; 1: as much as before. rows (2, n, p).
    """
    f, g = rows.double()
    return float((f @ R.T - g).norm() / (f - g).norm().clamp(min=1e-300))
