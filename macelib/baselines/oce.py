"""OCE: orthogonal rotation of a layer's outputs (Sun et al., ICML 2026, arXiv 2605.28902)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..models.entrances import kv_weights
from .changes import OutputMap, kv_part
from .columns import token_mean, tokens
from .registry import Request, Settings, register
from .uce import target_columns

DEPENDENT = 1e-6  # singular values of normalised columns up to here, relative to the largest, are rounding
UNDETERMINED = 1e-8  # ridge of M towards I, relative to ‖M‖: far above rounding, far below what determines Q


@dataclass(frozen=True)
class OCE(Settings):
    """The paper's values for one object."""

    form: Literal["subspace", "vector"] = "subspace"  # subspace: the final objective; vector: the paper's first one
    eta: float = 2000.0  # η, weight of the targets' subspace
    zeta: float = 10.0  # ζ, weight of the general captions' tokens
    kappa: float = 0.0  # κ, weight of the names to keep
    lambda_: float = 10.0  # λ, weight of W itself
    anchor: str | None = "sky"  # text that every concept becomes; None: each concept's own anchor
    expand: bool = True  # five templates per name
    keep_anchor: bool = True  # the anchor is preserved, too; no effect where kappa is 0, but in the vector form
    parts: Literal["v", "kv"] = "v"  # what is rotated: the authors' code values only
    reflection: Literal["leave", "flip_u", "flip_q"] = "leave"  # det Q < 0: leave it; flip U's last column; as the code


PUBLISHED = {
    "celebrity": OCE(eta=800.0, zeta=70.0, kappa=2.0, anchor="tree", expand=False, keep_anchor=False),
    "unsafe": OCE(eta=3000.0, zeta=20.0, anchor="clothed; weared; fully dressed"),
}
GRID = (
    {"form": ("subspace",), "eta": (50.0, 200.0, 800.0, 2000.0), "zeta": (10.0, 70.0), "kappa": (0.0, 2.0)},
    {"form": ("vector",)},  # it has no weights
)


def subspace(columns: Tensor) -> Tensor:
    """G = V Vᵀ, V an orthonormal basis of the span of the normalised columns (o, n): (o, o).

    By SVD, as columns may depend on each other: one anchor for all concepts is n equal ones.
    """
    V, s, _ = torch.linalg.svd(columns / columns.norm(dim=0).clamp(min=1e-12), full_matrices=False)
    V = V[:, s > DEPENDENT * s[:1]]
    return V @ V.T


def subspace_objective(W: Tensor, C: Tensor, A: Tensor, P0: Tensor, K0: Tensor, s: OCE) -> Tensor:
    """M = −η G (I − G*) + ζ W K0 Wᵀ + κ Σ_j (W p_j)(W p_j)ᵀ + λ W Wᵀ: (o, o).

    W: (o, d). C, A: (d, n), targets and anchors; G, G*: the projectors onto the span of W C and W A. P0: (d, m).
    K0 (d, d): mean of e eᵀ over the tokens of general captions.
    """
    G, G_star, kept = subspace(W @ C), subspace(W @ A), W @ P0
    return -s.eta * (G - G @ G_star) + s.zeta * W @ K0 @ W.T + s.kappa * kept @ kept.T + s.lambda_ * W @ W.T


def vector_objective(W: Tensor, C: Tensor, A: Tensor, P0: Tensor) -> Tensor:
    """M = W (A Cᵀ + P0 P0ᵀ) Wᵀ: Q then minimises Σ ‖Q W c − W a‖² + Σ ‖Q W p − W p‖² over rotations; (o, o)."""
    return W @ (A @ C.T + P0 @ P0.T) @ W.T


def rotation(M: Tensor, reflection: Literal["leave", "flip_u", "flip_q"] = "leave") -> Tensor:
    """Q = U Zᵀ of M = U Σ Zᵀ: the orthogonal Q with the largest trace of Qᵀ M; (o, o).

    M gets UNDETERMINED ‖M‖ I first: where M says nothing, Q is near I, and not whatever rounding makes of it.
    reflection, where det Q < 0: "leave" (a reflection is orthogonal, too), "flip_u" (the best rotation), "flip_q" (the
    last column of Q itself, which is not the best).
    """
    ridge = UNDETERMINED * torch.linalg.matrix_norm(M) * torch.eye(len(M)).to(M)
    U, _, Zh = torch.linalg.svd(M + ridge)
    Q = U @ Zh
    if reflection == "leave" or torch.linalg.slogdet(Q).sign > 0:
        return Q
    if reflection == "flip_u":
        U[:, -1] *= -1
        return U @ Zh
    Q[:, -1] *= -1
    return Q


def layer_rotation(W: Tensor, C: Tensor, A: Tensor, P0: Tensor, K0: Tensor | None, s: OCE) -> Tensor:
    """Q (o, o) of one layer W (o, d).

    Both objectives live in the span of W's columns: where o > d, the rotation is found there, and is I outside of it.
    """
    V = torch.linalg.qr(W).Q if len(W) > W.shape[1] else torch.eye(len(W), dtype=W.dtype)
    w = V.T @ W
    M = vector_objective(w, C, A, P0) if K0 is None else subspace_objective(w, C, A, P0, K0, s)
    return torch.eye(len(W), dtype=W.dtype) + V @ (rotation(M, s.reflection) - torch.eye(len(M), dtype=W.dtype)) @ V.T


@register("oce", OCE, published=PUBLISHED, grid=GRID)
def oce(request: Request, settings: OCE) -> OutputMap:
    """One rotation per layer."""
    C, A = target_columns(request, "last", settings.anchor, settings.expand)
    kept = [*request.kept, *([settings.anchor] if settings.keep_anchor and settings.anchor else [])]
    P0 = tokens(request.pipe, kept, "last")
    K0 = token_mean(request) if settings.form == "subspace" else None
    Q = {}
    for name, w in kv_weights(request.pipe.unet).items():
        if kv_part(name) in settings.parts:
            Q[name] = layer_rotation(w.detach().double().cpu(), C, A, P0, K0, settings).float()
    request.report.update({"columns": C.shape[1], "kept_columns": P0.shape[1]})
    return OutputMap(Q)
