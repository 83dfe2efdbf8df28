"""Sums of outer products over many rows, in float64, or with products in float32 that hardly round."""

from itertools import pairwise

import torch
from torch import Tensor

from ..errors import MaceError

PRODUCTS = {"fp64": torch.float64, "mixed": torch.float32}  # mixed: products in float32, sums in float64
Products = torch.dtype | str  # torch.float64 = "fp64", torch.float32 = "mixed"
BLOCK = {torch.float64: 512, torch.float32: 2560}  # rows at once (30 prompts of 77 tokens): bounds memory, and rounding
LOUD = 2.0  # times the median norm: rows above it, [BOS] first of all, are multiplied in float64


def gram(e: Tensor, G: Tensor | None = None, products: Products = torch.float64) -> Tensor:
    """G + Σ e eᵀ over the rows of e (n, d), summed in float64 into G (d, d) in place (None: zeros)."""
    products, (e, G) = _dtype(products), _ready(e, G)
    upper = torch.zeros_like(G)
    for rows in e.split(BLOCK[products]):
        _add(rows.to(products), None, upper, None)
    G += _symmetric(upper)
    return G


def _symmetric(upper: Tensor) -> Tensor:
    return upper.triu_().add_(upper.triu(1).T)


def accumulate(
    e_f: Tensor, e_g: Tensor, X: Tensor | None = None, G: Tensor | None = None, products: Products = torch.float64
) -> tuple[Tensor, Tensor]:
    """Add paired rows to the sums of Eq. 2, in place: X += Σ e^g e^fᵀ, G += Σ e^f e^fᵀ.

    e_f, e_g: (n, d). X, G: (d, d), float64 (None: zeros). `products` "mixed": short chunks are multiplied in float32
    and summed in float64. X is formed as G + Σ (e^g − e^f) e^fᵀ, which rounds less: R − I is what is sought.
    MaceError for rows that do not pair and for another `products`.
    """
    if e_f.shape != e_g.shape or e_f.ndim != 2:
        raise MaceError(f"Rows must pair: e_f is {tuple(e_f.shape)}, e_g is {tuple(e_g.shape)}, both must be (n, d).")
    products, (e_f, G, X) = _dtype(products), _ready(e_f, G, X)
    upper, rows = torch.zeros_like(G), BLOCK[products]
    for f, g in zip(e_f.split(rows), e_g.to(e_f.device).split(rows), strict=True):
        f = f.to(products)
        _add(f, g.to(products) - f, upper, X)
    added = _symmetric(upper)
    G += added
    X += added
    return X, G


def _add(f: Tensor, delta: Tensor | None, upper: Tensor, X: Tensor | None) -> None:
    """Add Σ f fᵀ to the upper blocks of `upper` and Σ delta fᵀ to X; rows (n, d), all float64 or all float32.

    In float32, loud rows are left to float64 and the others centred, f = m + c: what is common to all tokens would be
    rounded alike in every product, and the small differences between tokens would drown in that.
    """
    if f.dtype == torch.float64 or not len(f):
        return _multiply(f, delta, upper, X)
    norms = f.norm(dim=1)
    loud = (norms > LOUD * norms.median()).nonzero()[:, 0]
    _multiply(f[loud].double(), None if delta is None else delta[loud].double(), upper, X)
    n = len(f) - len(loud)
    m = (f.sum(0) - f[loud].sum(0)) / n
    c = f - m
    c[loud] = 0
    m, s = m.double(), c.sum(0).double()  # Σ f fᵀ = Σ c cᵀ + m (s + n m)ᵀ + s mᵀ, whatever m is
    upper.addr_(m, s + n * m).addr_(s, m)
    if delta is not None:
        X.addr_((delta.sum(0) - delta[loud].sum(0)).double(), m)
    _multiply(c, delta, upper, X)


def _multiply(f: Tensor, delta: Tensor | None, upper: Tensor, X: Tensor | None, blocks: int = 4) -> None:
    """The products of `_add`; of the symmetric one, only the upper blocks: 5/8 of the work."""
    edges = [round(f.shape[1] * b / blocks) for b in range(blocks + 1)]
    for a, b in pairwise(edges):
        _add_product(upper[a:b, a:], f[:, a:b], f[:, a:])
    if delta is not None:
        _add_product(X, delta, f)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += leftᵀ right; without a temporary where all are float64."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right


def _dtype(products: Products) -> torch.dtype:
    products = PRODUCTS.get(products, products)
    if products not in PRODUCTS.values():
        raise MaceError(f"products is {products}: it must be fp64 (torch.float64) or mixed (torch.float32).")
    return products


def _ready(e: Tensor, *sums: Tensor | None) -> tuple[Tensor, ...]:
    """e and its float64 sums (d, d) on one device: e's, or the CPU where e's has no float64 (mps)."""
    e = e.cpu() if e.device.type == "mps" else e
    d = e.shape[-1]
    return e, *(torch.zeros(d, d, dtype=torch.float64, device=e.device) if s is None else s for s in sums)
