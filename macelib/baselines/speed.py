"""SPEED: an update in the null space of what is kept (Li et al., ICLR 2026, arXiv 2503.07392)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import MaceError
from ..models.entrances import kv_weights
from .changes import TextMap, WeightDelta, kv_part
from .columns import anchors, note_pooled, preserved, states, tokens
from .registry import Request, Settings, register

CENTRES = 3  # of k-means over the states of ""


@dataclass(frozen=True)
class SPEED(Settings):
    """The paper's values for one to three objects or styles."""

    positive = ("rho",)
    anchor: str | None = ""  # text that every concept becomes; None: each concept's own anchor
    tokens: Literal["last", "words"] = "last"  # columns of a target, of "" too: last subject token, or all but [SOS]
    keep: Literal["names", "empty"] = "names"  # P0: names to keep, or general captions where none are told; or ""
    theta: float = 0.1  # eigenvalues of S below it are its null space
    relative: bool = False  # theta is a share of S's largest eigenvalue: for encoders of another scale than CLIP-L's
    rho: float = 1.0  # ridge towards the original weights
    mu: float = 0.0  # ridge of the constraint D K = 0
    aug: int = 10  # DPA: noisy copies of a kept column; 0: none
    ipf: bool = True  # IPF: only columns that the edit would move more than the mean are preserved
    iec: bool = True  # IEC: D K = 0 for the states of ""
    parts: Literal["v", "kv"] = "v"  # what is edited: the authors' code values only, the paper both
    per_layer: bool = True  # IPF and DPA by each layer's W; False: by all together, one map for all layers


PUBLISHED = {
    "style": SPEED(anchor="art"),
    "celebrity": SPEED(anchor="person", theta=1e-4, rho=0.05, ipf=False),
    "unsafe": SPEED(tokens="words", keep="empty", rho=0.7, mu=0.5),
}
# Of some fifty names S has no eigenvalue between 0 and 0.3 with mini-SD's encoder: theta acts from 1 on.
GRID = {"theta": (1.0, 3.0, 10.0), "rho": (0.05, 0.3, 1.0), "ipf": (True, False)}


def null_projector(S: Tensor, theta: float, relative: bool = False, span: Tensor | None = None) -> Tensor:
    """P = U Uᵀ over the eigenvectors of S (d, d) whose eigenvalue is below θ (times the largest, if relative).

    span: columns whose span holds the range of S; fewer than d, they make the eigenproblem as small as they are.
    """
    eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
    Q = eye if span is None or span.shape[1] >= len(S) else torch.linalg.qr(span).Q
    values, U = torch.linalg.eigh(Q.T @ S @ Q)
    U = Q @ U[:, values >= theta * (values[-1] if relative else 1.0)]
    return eye - U @ U.T


def speed_update(T: Tensor, B: Tensor, P: Tensor, K: Tensor | None = None, rho: float = 1.0, mu: float = 0.0) -> Tensor:
    """D = (B − T) P Q M of W' = W (I + D), float64: (d, d).

        M = (T P + ρ I)⁻¹,   Q = I − M K (Kᵀ P M K + μ I)⁻¹ Kᵀ P      (a pseudo-inverse for μ = 0)

    T = C Cᵀ / n, B = A Cᵀ / n, P a projector: (d, d). K: (d, k), or None: Q = I. It minimises
    ‖(W + Δ P) C − W A‖² / n + ρ ‖Δ P‖² subject to Δ P K = 0 (for μ = 0), Δ P = W D.
    """
    eye = torch.eye(len(T), dtype=T.dtype, device=T.device)
    bracket = T @ P + rho * eye
    left = (B - T) @ P
    if K is not None and K.shape[1]:
        MK = torch.linalg.solve(bracket, K)
        inner = K.T @ P @ MK
        inverse = torch.linalg.pinv(inner) if not mu else torch.linalg.inv(inner + mu * torch.eye(len(inner)).to(inner))
        left = left - left @ MK @ inverse @ K.T @ P
    return torch.linalg.solve(bracket, left, left=False)


def plain_step(T: Tensor, B: Tensor) -> Tensor:
    """(B − T)(I + T)⁻¹: what moves W by Δ0 = W (B − T)(I + T)⁻¹ where nothing is preserved."""
    return torch.linalg.solve(torch.eye(len(T), dtype=T.dtype, device=T.device) + T, B - T, left=False)


def weakest(H: Tensor, rows: int) -> Tensor:
    """The right singular vector of W (rows, d) of the smallest of its min(rows, d) singular values: (d, 1); H = Wᵀ W.

    Where W has fewer rows than columns, H has a null space, whose vectors are none of them.
    """
    return torch.linalg.eigh(H).eigenvectors[:, [max(0, len(H) - rows)]]


def refine_kept(P0: Tensor, step: Tensor, H: Tensor, v: Tensor, ipf: bool, aug: int, seed: int = 0) -> Tensor:
    """IPF and DPA: the columns (d, m') that S is made of, from P0 (d, m).

    IPF keeps the columns p with ‖Δ0 p‖ above the mean, Δ0 = W step. DPA adds, of `aug` samples p + v vᵀ ε of each kept
    one, those above their own mean. H = Wᵀ W of one layer, or summed over several, and its `weakest` v are all that is
    needed of W.
    """

    def moved(columns: Tensor) -> Tensor:
        changed = step @ columns
        return (changed * (H @ changed)).sum(0).clamp(min=0).sqrt()  # ‖W step p‖ per column

    if ipf:
        size = moved(P0)
        P0 = P0[:, size >= size.mean()]
    if not aug:
        return P0
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(P0.shape[1] * aug, len(P0), generator=generator, dtype=P0.dtype).to(P0).T  # (d, m aug)
    more = P0.repeat_interleave(aug, 1) + v @ (v.T @ noise)
    size = moved(more)
    return torch.cat([P0, more[:, size >= size.mean()]], 1)


def invariant(e: Tensor, seed: int = 0) -> Tensor:
    """K (d, 4): the [SOS] state of e = E("") (T, d), and three k-means centres of its other states."""
    e = e.double()
    return torch.cat([e[:1], k_means(e[1:], min(CENTRES, len(e) - 1), seed)]).T.contiguous()


def k_means(rows: Tensor, k: int, seed: int = 0, rounds: int = 50) -> Tensor:
    """k centres (k, d) of rows (n, d) by Lloyd's rounds from k distinct rows drawn by the seed."""
    centres = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:k]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(rows, centres).argmin(1)
        new = torch.stack([rows[nearest == i].mean(0) if (nearest == i).any() else centres[i] for i in range(k)])
        if torch.equal(new, centres):
            break
        centres = new
    return centres


@register("speed", SPEED, published=PUBLISHED, grid=GRID)
def speed(request: Request, settings: SPEED) -> TextMap | WeightDelta:
    """One map for all layers, or a weight delta where IPF and DPA go by layer."""
    C, A = _targets(request, settings)
    P0 = _kept(request, settings)
    T, B = C @ C.T / C.shape[1], A @ C.T / C.shape[1]
    step = plain_step(T, B)
    K = invariant(states(request.pipe, [""])[0], request.seed) if settings.iec else None

    def update(H: Tensor, rows: int) -> Tensor:
        v = weakest(H, rows) if settings.aug else P0[:, :0]
        kept = refine_kept(P0, step, H, v, settings.ipf, settings.aug, request.seed)
        span = torch.cat([P0, v], 1)
        P = null_projector(kept @ kept.T / kept.shape[1], settings.theta, settings.relative, span)
        if not P.any():
            raise MaceError(
                f"What is kept leaves no null space below theta = {settings.theta:g}: raise theta, or keep fewer names."
            )
        free.append(round(float(P.trace())))
        columns.append(kept.shape[1])
        return speed_update(T, B, P, K, settings.rho, settings.mu)

    free, columns = [], []  # by layer: dimension of the null space, columns that S is made of
    W = {n: w.detach().double().cpu() for n, w in kv_weights(request.pipe.unet).items() if kv_part(n) in settings.parts}
    if settings.per_layer and (settings.ipf or settings.aug):
        change = WeightDelta({f"{n}.weight": (w @ update(w.T @ w, len(w))).float() for n, w in W.items()})
    else:
        eye = torch.eye(len(T), dtype=T.dtype)
        change = TextMap(eye + update(sum(w.T @ w for w in W.values()), sum(map(len, W.values()))), settings.parts)
    request.report.update({"columns": C.shape[1], "preserved": P0.shape[1]})
    request.report.update({"kept_columns": min(columns), "null_space": min(free)})
    return change


def _targets(request: Request, settings: SPEED) -> tuple[Tensor, Tensor]:
    """C and A (d, n)."""
    note_pooled(request)
    becomes = [anchor for c in request.concepts for anchor in anchors(c, settings.anchor, 1, False)]
    return tuple(_columns(request, settings, texts) for texts in ([c.name for c in request.concepts], becomes))


def _kept(request: Request, settings: SPEED) -> Tensor:
    """P0 (d, m)."""
    if settings.keep == "names":
        return tokens(request.pipe, preserved(request), "last")
    if request.kept:
        request.note('What is preserved is "" alone, not the names to keep: set keep to "names" for these.')
    return _columns(request, settings, [""])


def _columns(request: Request, settings: SPEED, texts: list[str]) -> Tensor:
    """The columns of texts (d, n)."""
    if settings.tokens == "last":
        return tokens(request.pipe, texts, "last")
    return states(request.pipe, texts)[:, 1:].flatten(0, 1).double().T
