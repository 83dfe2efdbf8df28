"""Adversarial rounds of stage 1: what still brings a concept back, as further rows of Eq. 2.

RECE (Gong et al., ECCV 2024, arXiv 2407.12383, Eq. 5-10), for the map R that all layers share.
"""

import torch
from torch import Tensor

from ..errors import MaceError
from ..models.entrances import kv_weights
from .refine import Refinement, cholesky, solve_refinement


def layers_gram(model) -> Tensor:
    """H = Σ_l W_lᵀ W_l over every matrix that reads the text's tokens: (d, d) float64 on the CPU."""
    return sum(w.detach().double().T @ w.detach().double() for w in kv_weights(model).values()).cpu()


def adversarial_map(R: Tensor, H: Tensor, gamma: float) -> Tensor:
    """M = (Rᵀ H R + γ I)⁻¹ Rᵀ H, so that c' = M c = argmin Σ_l ‖W_l R c' − W_l c‖² + γ ‖c'‖²  (RECE, Eq. 5-10).

    R: (d, d). H = Σ_l W_lᵀ W_l (d, d): one for all layers. MaceError where γ = 0 and R is singular.
    """
    R, H = R.double(), H.double()
    L = cholesky(R.T @ H @ R + gamma * torch.eye(len(R), dtype=R.dtype, device=R.device), "raise gamma")
    return torch.cholesky_solve(R.T @ H, L)


def refine_in_rounds(
    X: Tensor,
    G: Tensor,
    P: Tensor | None,
    lambda1: float,
    lambda0: float,
    rounds: int,
    H: Tensor | None,
    gamma: float,
    kept: Tensor | float = 0.0,
) -> Refinement:
    """Eq. 2 (`solve_refinement`), solved again `rounds` times with further rows.

    After each solve, M of `adversarial_map` makes of every co-existing token e^f the embedding e' = M e^f that refined
    layers read most nearly as the original ones read e^f; the pairs (e', e^g) join the rows, all at once:

        X ← X + X₀ Mᵀ,   G ← G + M G₀ Mᵀ                     X₀, G₀: the sums of the prompts

    X, G, P, H: (d, d), see `layers_gram`. gamma: γ in mean eigenvalues of H. kept: K = Σ (1 − s) G of the concepts with
    strengths s; their rows are mapped to (1 − s) e' + s e^g, so that X gets (M − I) K Mᵀ besides.
    MaceError: no H, and as `solve_refinement`.
    """
    found = solve_refinement(X, G, P, lambda1, lambda0)
    if rounds and H is None:
        raise MaceError("refine.rounds asks for sums over the model's layers that were not kept: erase again with it.")
    more_X, more_G = X, G
    for _ in range(rounds):
        M = adversarial_map(found.R, H, gamma * float(H.trace()) / len(H))
        more_X = more_X + (X + M @ kept - kept if isinstance(kept, Tensor) else X) @ M.T
        more_G = more_G + M @ G @ M.T
        found = solve_refinement(more_X, more_G, P, lambda1, lambda0)
    return found
