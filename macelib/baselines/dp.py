"""DP: double projections, which keep what is preserved exactly (Zhang et al., CVPR 2026, arXiv 2604.10032)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MaceError
from .changes import TextMap
from .columns import preserved, tokens
from .registry import Request, Settings, register
from .uce import target_columns

ILL = 1e6  # ‖C‖₂ / σ_min(X) above which the pseudo-inverse of the projected targets X gets a ridge
NOTHING = 1e-10  # ‖X‖₂ / ‖C‖₂ up to which the targets lie in the span of what is preserved


@dataclass(frozen=True)
class DP(Settings):
    """The paper's method; it has no ridge, ours counts where the projected targets are nearly dependent."""

    anchor: str | None = None  # text that every concept becomes; None: each concept's own anchor
    safe: bool = False  # anchors are the targets projected onto the span of what is preserved
    k: int = 0  # the complement of P0's first k left singular vectors; 0: its exact null space
    rho: float = 1e-6  # ridge of the pseudo-inverse, relative to ‖C‖₂²; most targets need none


GRID = (  # k below the number of names to keep: from that on it is their null space
    {"k": (0, 8, 16, 32), "anchor": (None, "")},
    {"k": (0, 8, 16, 32), "safe": (True,)},
)


def safe_anchors(C: Tensor, S: Tensor) -> Tensor:
    """A = S (Sᵀ S)⁺ Sᵀ C: the targets' columns C (d, n) projected onto the span of safe columns S (d, m)."""
    return S.double() @ torch.linalg.lstsq(S.double(), C.double(), driver="gelsd").solution


def directions(P0: Tensor, k: int = 0) -> tuple[Tensor, Tensor]:
    """Orthonormal bases U1 (d, r) of what is preserved, and U2 (d, d − r) of what is free; P0: (d, m).

    U1: the first k left singular vectors of P0; for k = 0, or more than its rank, those of its span.
    """
    P0 = P0.double()
    U, s, _ = torch.linalg.svd(P0, full_matrices=P0.shape[1] < len(P0))  # U whole, the other side never larger
    tolerance = max(P0.shape) * torch.finfo(s.dtype).eps * (float(s[0]) if len(s) else 0.0)
    rank = int((s > tolerance).sum())
    r = min(k or rank, rank)
    return U[:, :r], U[:, r:]


def dp_map(C: Tensor, A: Tensor, P0: Tensor, k: int = 0, rho: float = 1e-6) -> tuple[Tensor, float]:
    """R = I + (A − C) X⁺ U2ᵀ with X = U2ᵀ C, float64, and ‖C‖₂ / σ_min(X): how little of a target is free.

    U2: see `directions`. R P0 = P0 exactly for k = 0, and R C = A exactly where X has full column rank; a ridge of
    rho ‖C‖₂² where that number exceeds 1e6. C, A: (d, n). P0: (d, m).
    MaceError where what is preserved leaves no direction free, or nothing of the targets.
    """
    C, A = C.double(), A.double()
    _, U2 = directions(P0, k)
    if not U2.shape[1]:
        raise MaceError(f"{P0.shape[1]} preserved columns span all {len(P0)} directions: keep fewer, or set dp's k.")
    X = U2.T @ C  # (q, n)
    values, size = torch.linalg.svdvals(X), torch.linalg.matrix_norm(C, 2)
    if values[0] <= NOTHING * size:
        raise MaceError("The targets lie in the span of what is preserved: keep fewer names, or set dp's k.")
    condition = float(size / values[-1].clamp(min=1e-300)) if X.shape[1] <= X.shape[0] else float("inf")
    ridge = rho * size.square() if condition > ILL else torch.zeros(())
    inverse = torch.linalg.pinv(X) if not ridge else _ridge_inverse(X, ridge)
    return torch.eye(len(C), dtype=C.dtype, device=C.device) + (A - C) @ inverse @ U2.T, condition


def _ridge_inverse(X: Tensor, ridge: Tensor) -> Tensor:
    """Xᵀ (X Xᵀ + ρ I)⁻¹ = (Xᵀ X + ρ I)⁻¹ Xᵀ, the smaller of the two systems: (n, q)."""
    gram = X.T @ X
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), X.T)


@register("dp", DP, grid=GRID)
def dp(request: Request, settings: DP) -> TextMap:
    """One text map that leaves the last tokens of what is preserved as they are, and moves those of the targets.

    Preserved are the names to keep; where none are told, "", or with k the first directions of general captions.
    """
    C, A = target_columns(request, "last", settings.anchor, False)
    if alone := not request.kept and not settings.k:
        request.note('No names to keep are told: "" alone is preserved; general captions span all directions, set k.')
    P0 = tokens(request.pipe, [""] if alone else preserved(request), "last")
    A = safe_anchors(C, directions(P0, settings.k)[0]) if settings.safe else A
    R, condition = dp_map(C, A, P0, settings.k, settings.rho)
    request.report.update({"columns": C.shape[1], "condition": condition})
    if condition > ILL:
        request.note(f"Targets are nearly dependent, or preserved (condition {condition:.2g}): solved with a ridge.")
    return TextMap(R)
