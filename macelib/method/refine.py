"""Stage 1: closed-form cross-attention refinement (Eq. 1-2) as one linear map R on text embeddings.

W factors out of Eq. 2, because the embeddings do not depend on the layer: W' = W R for every layer, keys and values.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..concepts import Concept, anchored, prompts, templates
from ..errors import MaceError
from ..models.text import Reading, aligned, read, spans
from .sums import Products, accumulate, gram

log = logging.getLogger(__name__)
PER_CONCEPT = 498_000  # bytes of a concept in an erasure's file, its header aside
WIDE, LEAST = 2048, 250_000  # width up to which a concept's factors get LEAST bytes at least, and beyond it more
SMALL = 384  # width of the text up to which a concept's statistics are kept whole (1.8 MB)
TINY, WORST = 1e-8, 1e12  # ridge in place of λ0 = 0, relative to the mean eigenvalue; condition from which it is needed


@dataclass(frozen=True)
class Refinement:
    """Stage 1's result."""

    R: Tensor  # (d, d) float64: W' = W R
    condition: float  # estimated 2-norm condition number of G + λ1 P + λ0 I
    residual: float  # ||R (G + λ1 P + λ0 I) − (X + λ1 P + λ0 I)|| / ||X + λ1 P + λ0 I||, Frobenius


def solve_refinement(
    X: Tensor, G: Tensor, P: Tensor | None = None, lambda1: float = 0.0, lambda0: float = 1.0
) -> Refinement:
    """R = (X + λ1 P + λ0 I) (G + λ1 P + λ0 I)⁻¹ (Eq. 2 without W), by Cholesky in float64.

    X, G, P: (d, d). Where λ0 is 0 and that breaks, both brackets get `tiny_ridge`. MaceError for a negative λ, for λ1
    without P, and for a bracket that is not positive definite.
    """
    if lambda0 < 0 or lambda1 < 0 or (lambda1 and P is None):
        raise MaceError(f"λ0 = {lambda0:g} and λ1 = {lambda1:g} must not be negative, and λ1 needs a prior P.")
    prior = lambda1 * P.to(G) if lambda1 else 0.0
    ridge = (lambda0 or tiny_ridge(G + prior)) * torch.eye(len(G), dtype=G.dtype, device=G.device)
    right, left = G + prior + ridge, X + prior + ridge  # the brackets of Eq. 2
    L = cholesky(right)
    R = torch.cholesky_solve(left.T, L).T
    residual = (R @ right - left).norm() / left.norm()
    return Refinement(R.contiguous(), condition_number(right, L), float(residual))


def tiny_ridge(S: Tensor) -> float:
    """The ridge in place of λ0 = 0, with a warning: 1e-8 tr(S) / d where S has no Cholesky factor or condition > 1e12.

    0 where S (d, d) needs none.
    """
    L, info = torch.linalg.cholesky_ex(S)
    if not torch.isfinite(S).all() or (not info.item() and condition_number(S, L) <= WORST):
        return 0.0
    ridge = TINY * float(S.trace()) / len(S)
    log.warning("λ0 is 0, and the token statistics leave directions empty: a ridge of %.3g is added.", ridge)
    return ridge


def cholesky(S: Tensor, cure: str = "raise λ0 (ridge) or add a prior") -> Tensor:
    """Lower Cholesky factor of S (d, d); MaceError with the cure where S is not positive definite, or not finite."""
    if not torch.isfinite(S).all():
        raise MaceError("The token statistics are not finite: the text encoder overflowed; load it in float32.")
    L, info = torch.linalg.cholesky_ex(S)
    if info.item():
        raise MaceError(f"The token statistics are singular (row {info.item()} of {len(S)}): {cure}.")
    return L


def condition_number(S: Tensor, L: Tensor, steps: int = 25) -> float:
    """2-norm condition number of S = L Lᵀ by power and inverse iteration: a lower estimate, within a few per cent."""
    generator = torch.Generator().manual_seed(0)
    high = low = torch.randn(len(S), 1, generator=generator, dtype=torch.float64).to(S)
    inverse = torch.cholesky_inverse(L)  # good enough to estimate with; a solve per step would copy L each time
    for _ in range(steps):
        high, low = (v / v.norm() for v in (S @ high, inverse @ low))
    return float((S @ high).norm() * (inverse @ low).norm())


def symmetric(upper: Tensor, d: int) -> Tensor:
    """The symmetric (d, d) whose upper triangle, row by row, is `upper` (d (d + 1) / 2,)."""
    S = upper.new_zeros(d, d)
    S[tuple(torch.triu_indices(d, d))] = upper
    return S + S.triu(1).T


@dataclass(frozen=True)
class ConceptStatistics:
    """One concept's sums in an orthonormal basis Q of k directions: X = Y Qᵀ, G = Q Gq Qᵀ, C = Q Cq Qᵀ."""

    Q: Tensor  # (d, k)
    Y: Tensor  # (d, k)
    Gq: Tensor  # (k, k), co-existing tokens
    Cq: Tensor  # (k, k), all T tokens of the concept's prompts (Eq. 7)
    lost: float  # share of the trace of C outside the basis

    def X(self) -> Tensor:
        """Σ e^g e^fᵀ, (d, d) float64."""
        return self.Y.double() @ self.Q.double().T

    def G(self) -> Tensor:
        """Σ e^f e^fᵀ, (d, d) float64."""
        return self.Q.double() @ self.Gq.double() @ self.Q.double().T

    def C(self) -> Tensor:
        """Σ e eᵀ, (d, d) float64."""
        return self.Q.double() @ self.Cq.double() @ self.Q.double().T

    def times_C(self, M: Tensor) -> Tensor:
        """M C in float64 without forming C; M: (m, d)."""
        Q = self.Q.double()
        return M.double() @ Q @ self.Cq.double() @ Q.T

    def scaled(self, strength: float) -> "ConceptStatistics":
        """The same prompts refined by a share: X becomes (1 − s) G + s X, so s = 0 maps every token onto itself."""
        identity = self.Q.double() @ self.Gq.double()  # (d, k): G = (Q Gq) Qᵀ
        return replace(self, Y=((1 - strength) * identity + strength * self.Y.double()).to(self.Y))

    def to(self, *args) -> "ConceptStatistics":
        """The factors on another device or in another dtype."""
        return replace(self, **{name: getattr(self, name).to(*args) for name in ("Q", "Y", "Gq", "Cq")})


def rank_for(d: int, budget: int = 300_000) -> int:
    """The largest k <= d for which Q, Y (d, k) and the triangles of Gq, Cq fit, in float32, into `budget` bytes."""
    return max(1, min(d, int(((d + 0.5) ** 2 + budget / 4) ** 0.5 - d - 0.5)))  # 4 (2 d k + k (k + 1)) <= budget


def stored_rank(d: int, outs: Sequence[int], rank: int = 1) -> int:
    """Directions of a concept's factors that fit into half a megabyte beside its LoRA: all of them in small models.

    outs: out features of every layer. Where a LoRA of high rank leaves less, the factors get 250 kB all the same, and
    with wider text than SDXL's as much more as a direction takes more.
    """
    if d <= SMALL:
        return d
    least = int(LEAST * max(1.0, d / WIDE) ** 2)
    return rank_for(d, max(PER_CONCEPT - 4 * rank * (sum(outs) + len(outs) * d), least))


def compress(
    X: Tensor, G: Tensor, C: Tensor, rank: int | None = None, tolerance: float = 1e-10, power: int = 2
) -> ConceptStatistics:
    """Factors of one concept's sums in the leading eigenvectors of C + G, float64 on C's device.

    rank None or ≥ d: every direction whose eigenvalue exceeds `tolerance` times the largest (exact: the range of C + G
    holds those of C, G and Xᵀ). Else the first `rank`, by a randomized range finder with a fixed seed and power steps.
    """
    d, S = len(C), C + G
    if rank is None or rank >= d:
        values, Q = torch.linalg.eigh(S)
        Q = Q[:, values > tolerance * values[-1]]
    else:
        generator = torch.Generator().manual_seed(0)
        Q = torch.randn(d, min(d, rank + 8), generator=generator, dtype=torch.float64).to(C)
        for _ in range(power + 1):
            Q = torch.linalg.qr(S @ Q).Q  # (d, rank + 8)
        values, vectors = torch.linalg.eigh(Q.T @ S @ Q)
        Q = (Q @ vectors)[:, -rank:]
    Q = Q.flip(1).contiguous()  # largest first
    Gq, Cq = ((q + q.T) / 2 for q in (Q.T @ G @ Q, Q.T @ C @ Q))  # symmetric to the last bit: triangles are stored
    lost = float((1 - Cq.trace() / C.trace()).clamp(0, 1))
    return ConceptStatistics(Q, X @ Q, Gq, Cq, lost)


def concept_texts(pipe, concept: Concept, cache: dict | None = None) -> tuple[Reading, Reading]:
    """What the model reads of a concept's prompts, and of the same prompts with its anchor.

    `cache` keeps the last few anchors', which concepts often share.
    """
    cache, key = {} if cache is None else cache, tuple(anchored(concept))
    if key not in cache:
        while len(cache) >= 4:
            cache.pop(next(iter(cache)))
        cache[key] = read(pipe, list(key))
    return read(pipe, prompts(concept)), cache[key]


def concept_sums(
    pipe,
    concept: Concept,
    products: Products = torch.float64,
    texts: tuple[Reading, Reading] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """X, G, C (d, d) of one concept over its prompts and anchored prompts; `texts`: `concept_texts`, where it is known.

    MaceError for a template that the tokens of name and anchor cannot be told apart in.
    """
    alignments = [aligned(pipe, template, concept.name, concept.anchor) for template in templates(concept)]
    e, a = (text.tokens for text in texts or concept_texts(pipe, concept))  # (n, T, d) each
    X, G = accumulate(
        torch.cat([e[i, pair.source] for i, pair in enumerate(alignments)]),
        torch.cat([a[i, pair.target] for i, pair in enumerate(alignments)]),
        products=products,
    )
    return X, G, all_tokens(e, counted_tokens(pipe, concept, e.shape[1]), products)


def counted_tokens(pipe, concept: Concept, T: int) -> Tensor:
    """(n, T) bool: what Eq. 7 asks to be changed as the LoRA changes it, every token but a companion's own."""
    texts, alone = prompts(concept), len(templates(concept, alone=True))
    counted = torch.ones(len(texts), T, dtype=torch.bool)
    for row, prompt in list(zip(counted, texts, strict=True))[alone:]:
        for name in concept.companions:
            row[spans(pipe, prompt, name)] = False
        row[spans(pipe, prompt, concept.name)] = True
    return counted


def all_tokens(e: Tensor, counted: Tensor, products: Products = torch.float64) -> Tensor:
    """C = Σ e eᵀ over the tokens that count, (d, d); e: (n, T, d), counted: (n, T) bool."""
    return gram(e[counted.to(e.device)], products=products)


def difference(R: Tensor, exact: Tensor) -> float:
    """How far R is from `exact`, relative to what that changes: ||R − exact|| / ||exact − I||, Frobenius."""
    change = exact - torch.eye(len(exact)).to(exact)
    return float((R - exact).norm() / change.norm().clamp(min=1e-300))
