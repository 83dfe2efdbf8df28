"""Stage 3: closed-form fusion of the concepts' LoRAs (Eq. 7): W* = W R̃ + Σ B_i D*_i."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MaceError
from .refine import cholesky, condition_number, tiny_ridge


@dataclass
class Fusion:
    """One text-space map and one LoRA of rank Σ r_i per layer."""

    R_tilde: Tensor  # (d, d) float64
    D_star: Tensor | Sequence = ()  # (..., d) float64: the rows D*_i of all concepts; none: R̃ alone
    condition: float = 1.0  # of S


def null_space(P: Tensor | None, share: float) -> Tensor | None:
    """U (d, q), orthonormal: the weakest directions of the prior, which hold at most this share of its trace together.

    P: (d, d). share: 0 to 1; 1: None, all directions. MaceError: no prior, or no direction that holds so little.
    After SPEED (Li et al., ICLR 2026, arXiv 2503.07392), which cuts at an eigenvalue instead.
    """
    if share >= 1:
        return None
    if P is None:
        raise MaceError("fuse.null_space needs a prior: leave prior.use on and give captions, or leave it at 1.")
    values, U = torch.linalg.eigh(P.double())
    values = values.clamp(min=0)
    q = int((values.cumsum(0) <= share * values.sum()).sum())
    if not q:
        raise MaceError(f"fuse.null_space is {share:g}, and no direction of the prior holds so little: raise it.")
    return U[:, :q]


def fuse_sums(
    R: Tensor,
    DC: Tensor,
    C: Tensor,
    P: Tensor | None = None,
    lambda2: float = 0.0,
    lambda0: float = 1.0,
    U: Tensor | None = None,
) -> Fusion:
    """Eq. 7 with W factored out, for every layer at once, from the rows D_i C_i and the sum C = Σ C_i:

    S = C + λ2 P + λ0 I,   D*_i = D_i C_i S⁻¹,   R̃ = R + λ2 (I − R) P S⁻¹   (λ0 keeps W' = W R: it leaves R alone)

    With U (d, q) of `null_space`, W* − W is sought among the matrices that leave all other directions as they are:

    D*_i = D_i C_i U (Uᵀ S U)⁻¹ Uᵀ,   R̃ = I + (R − I) (C + λ0 I) U (Uᵀ S U)⁻¹ Uᵀ   (the same, where U Uᵀ = I)

    R, C, P: (d, d). DC: (..., d), any rows. λ0 = 0: see `tiny_ridge`.
    MaceError for a negative λ and for an S that is not positive definite.
    """
    if lambda0 < 0 or lambda2 < 0 or (lambda2 and P is None):
        raise MaceError(f"λ0 = {lambda0:g} and λ2 = {lambda2:g} must not be negative, and λ2 needs a prior P.")
    R = R.double()
    identity = torch.eye(len(R), dtype=R.dtype, device=R.device)
    prior = lambda2 * P.to(R) if lambda2 else torch.zeros_like(R)
    if U is not None:
        return _within(R, DC, C.to(R), prior, lambda0, U.to(R))
    S = C.to(R) + prior
    S = S + (lambda0 or tiny_ridge(S)) * identity
    L = cholesky(S)
    rows = torch.cat([(identity - R) @ prior, DC.to(R).reshape(-1, len(R))])  # (d + number of rows of DC, d)
    solved = torch.cholesky_solve(rows.T, L).T.contiguous()
    return Fusion(R + solved[: len(R)], solved[len(R) :].reshape(DC.shape), condition_number(S, L))


def _within(R: Tensor, DC: Tensor, C: Tensor, prior: Tensor, lambda0: float, U: Tensor) -> Fusion:
    """`fuse_sums` in the directions U (d, q) alone; prior: λ2 P."""
    S = U.T @ (C + prior) @ U  # (q, q)
    ridge = lambda0 or tiny_ridge(S)
    S.diagonal().add_(ridge)
    L = cholesky(S)
    change = less_identity(R)
    rows = torch.cat([change @ C + ridge * change, DC.to(R).reshape(-1, len(R))]) @ U  # (d + number of rows of DC, q)
    solved = torch.cholesky_solve(rows.T, L).T @ U.T
    identity = torch.eye(len(R), dtype=R.dtype, device=R.device)
    return Fusion(identity + solved[: len(R)], solved[len(R) :].reshape(DC.shape), condition_number(S, L))


def less_identity(R: Tensor) -> Tensor:
    """R − I, in the dtype of R."""
    return R - torch.eye(len(R)).to(R)


def changed(W: Tensor, change: Tensor, name: str, B: Tensor | None = None, D: Tensor | None = None) -> Tensor:
    """W + W change + B D (Eq. 7 with change = R̃ − I), computed in the dtype of change (d, d), in W's dtype.

    W: (out, d). B: (out, r), D: (r, d); None: no LoRA. MaceError names the layer where the result is NaN or infinite.
    """
    change = change.to(W.device)
    V = W.to(change)
    new = torch.addmm(V, V, change)
    if D is not None and D.numel():
        new.addmm_(B.to(V), D.to(V))
    return finite(new.to(W.dtype), name)


def finite(new: Tensor, name: str) -> Tensor:
    """The new weights of a layer; MaceError where they are NaN or infinite."""
    if not bool(torch.isfinite(new).all()):
        raise MaceError(
            f"The new weights of {name} are NaN or infinite in {new.dtype}: load the model in float32, or erase again."
        )
    return new
