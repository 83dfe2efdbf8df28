"""Time and memory of stages 1 and 3 at the shapes of SD v1.4, on random data, beside the machine's own products.

Text encoding is left out. `streamed` is the mathematics of `method.refine` and `method.fuse` alone: one pass over the
concepts, d x d sums, one map for all layers, and nothing kept by concept. An `Erasure` keeps each concept's factors and
rows, so that it can be taken back; what its fusion takes is measured beside it. `per_layer` is the common way, written
fairly (vectorised, streamed): it accumulates W e^g e^fᵀ and W_i e eᵀ layer by layer.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from ..concepts import Concept
from ..erasure import Erasure, Part
from ..errors import MaceError
from ..method.fuse import fuse_sums
from ..method.refine import ConceptStatistics, cholesky, solve_refinement, stored_rank
from ..method.sums import PRODUCTS, accumulate, gram
from .rates import Shapes, Spent, operations, peak


@dataclass(frozen=True)
class Data:
    """One concept's rows and LoRA, float32."""

    e_f: Tensor  # (n, d) co-existing tokens
    e_g: Tensor  # (n, d) the same tokens, anchored
    own: Tensor  # (m, d) the concept's tokens
    B: list[Tensor]  # per layer (out, 1)
    D: Tensor  # (L, d)


def random_concept(shapes: Shapes, seed: int) -> Data:
    """Random data of one concept; e^g is near e^f, as anchored prompts are."""
    g = torch.Generator().manual_seed(seed)
    n, m, d = shapes.prompts * (shapes.tokens - shapes.own), shapes.prompts * shapes.own, shapes.width
    e_f, own = torch.randn(n, d, generator=g), torch.randn(m, d, generator=g)
    e_g = torch.randn(n, d, generator=g).mul_(0.3).add_(e_f)
    B = (torch.randn(sum(shapes.out), 1, generator=g) * 0.02).split(shapes.out)
    return Data(e_f, e_g, own, list(B), torch.randn(len(shapes.out), d, generator=g) * 0.02)


def streamed(
    W: list[Tensor],
    concepts: Iterable[Data],
    P: Tensor,
    lambda_: float,
    products: torch.dtype,
    spent: Spent | None = None,
) -> None:
    """Stages 1 and 3 (Eq. 2 and 7), written over W; the memory it takes does not grow with the number of concepts.

    The D*_i are not kept: W* = W R̃ + M S⁻¹ with M = Σ B_i D_i C_i, as large as W and of its dtype. spent: the time
    that every part takes, without what the concepts take to come.
    """
    on = (spent or Spent()).on
    d = W[0].shape[1]
    X, G, C = (torch.zeros(d, d, dtype=torch.float64) for _ in range(3))
    M, waiting = [torch.zeros_like(w) for w in W], []

    def add(data: Data) -> None:
        G_i, own = torch.zeros_like(G), data.own.to(products)
        with on("sums"):
            accumulate(data.e_f, data.e_g, X, G_i, products)
            G.add_(G_i)
        with on("own"):
            gram(own, C, products)  # of the own tokens; Σ C_i is this and G
        with on("LoRAs"):
            D = data.D.double()
            waiting.append((data.B, (D @ G_i + (D @ own.T.double()) @ own.double()).to(W[0])))  # D_i C_i, (L, d)
            if len(waiting) == 16:
                _flush(M, waiting)

    for _ in map(add, concepts):  # `map` lets go of a concept's rows before it asks for the next
        pass
    with on("LoRAs"):
        _flush(M, waiting)
    with on("solves"):
        C += G
        R = solve_refinement(X, G, P, lambda_, lambda_).R
        R_tilde = fuse_sums(R, C[:0], C, P, lambda_, lambda_).R_tilde.to(W[0])
        S = cholesky(C.add_(P, alpha=lambda_).add_(torch.eye(d).to(C), alpha=lambda_))
        inverse = torch.cholesky_inverse(S).to(products)  # of many rows: a product each, not two triangular solves
    with on("weights"):
        for w, m in zip(W, M, strict=True):
            w.copy_(torch.addmm((m.to(products) @ inverse).to(w), w, R_tilde))  # Eq. 7


def _flush(M: list[Tensor], waiting: list) -> None:
    """M_l += Σ b_i (D_i C_i)_l over the concepts that wait."""
    if waiting:
        DC = torch.stack([dc for _, dc in waiting], 1)  # (L, waiting, d)
        for m, rows, *B in zip(M, DC, *(B for B, _ in waiting), strict=True):
            m.addmm_(torch.cat(B, 1).to(m), rows)
        waiting.clear()


def per_layer(W: list[Tensor], concepts: Callable[[], Iterable[Data]], P: Tensor, lambda_: float) -> None:
    """The same by Eq. 2 and Eq. 7 as they stand, float64, written over W: for every layer its own sums and solves.

    Fair to a fault: the embeddings are read once for all layers, and the bracket on the right, which no layer changes,
    is summed and factorised once, where common code does so per layer.
    """
    ridge, prior = lambda_ * torch.eye(W[0].shape[1], dtype=torch.float64), lambda_ * P
    V = [w.double() for w in W]
    top, bottom = [w @ (prior + ridge) for w in V], prior + ridge  # (out, d) per layer, (d, d)
    for data in concepts():  # Eq. 2
        f, g = data.e_f.double(), data.e_g.double()
        for w, t in zip(V, top, strict=True):
            t += (g @ w.T).T @ f
        bottom = bottom + f.T @ f
    L = torch.linalg.cholesky(bottom)
    V1 = [torch.cholesky_solve(t.T, L).T for t in top]
    top, bottom = [w @ prior + v @ ridge for w, v in zip(V, V1, strict=True)], prior + ridge
    for data in concepts():  # Eq. 7
        e = torch.cat([data.e_f, data.own]).double()
        for v, t, b, row in zip(V1, top, data.B, data.D, strict=True):
            t += (e @ v.T + torch.outer(e @ row.double(), b[:, 0].double())).T @ e
        bottom = bottom + e.T @ e
    L = torch.linalg.cholesky(bottom)
    for w, t in zip(W, top, strict=True):
        w.copy_(torch.cholesky_solve(t.T, L).T)


class Meter:
    """Seconds spent inside, without those that `feed` takes, and the most memory above the start in megabytes.

    every: seconds between two looks at the memory.
    """

    def __init__(self, every: float = 0.003):
        self.every = every

    def __enter__(self) -> "Meter":
        self.process = psutil.Process()
        self.base, self.peak, self.away, self.done = self.process.memory_info().rss, 0, 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self.start - self.away
        self.done.set()
        self.thread.join()
        self.megabytes = self.peak / 1e6

    def _watch(self) -> None:
        while not self.done.wait(self.every):
            self.peak = max(self.peak, self.process.memory_info().rss - self.base)

    def feed(self, shapes: Shapes, count: int, tell: Callable[[int], None]) -> Iterator[Data]:
        """Random data of one concept after the other, made while the clock stands still."""
        for i in range(count):
            start = time.perf_counter()
            data = random_concept(shapes, i)
            tell(i)
            self.away += time.perf_counter() - start
            yield data
            del data  # before the next is made


def random_erasure(shapes: Shapes, count: int) -> Erasure:
    """An erasure of random concepts, with LoRAs of rank 1 and factors of the stored rank."""
    parts, k = [], stored_rank(shapes.width, shapes.out)
    for i in range(count):
        g = torch.Generator().manual_seed(i)
        Q = torch.linalg.qr(torch.randn(shapes.width, k, generator=g)).Q
        half = torch.randn(k, 2 * k, generator=g)
        Gq, Cq = half @ half.T, 1.1 * half @ half.T
        Y = Q @ Gq + 0.1 * torch.randn(shapes.width, k, generator=g)
        B = torch.randn(sum(shapes.out), 1, generator=g) * 0.02
        D = torch.randn(len(shapes.out), 1, shapes.width, generator=g) * 0.02
        parts.append(Part(Concept(f"concept {i}", "anchor"), ConceptStatistics(Q, Y, Gq, Cq, 0.0), B, D))
    layers = {f"layer {i}": out for i, out in enumerate(shapes.out)}
    return Erasure(tuple(parts), layers, shapes.width, "", torch.eye(shapes.width, dtype=torch.float64))


def run(
    concepts: int, products: str, reference: int, toggle: bool, progress=None, shapes: Shapes | None = None
) -> list[str]:
    """Measure, and say it in lines; `progress(stage, done, total, detail)`. MaceError for unknown products."""
    if products not in (*PRODUCTS, "both"):
        raise MaceError(f"products is {products!r}; choose from {', '.join(PRODUCTS)}, both.")
    shapes, tell, lines, results = shapes or Shapes(), progress or (lambda *_: None), [], {}
    P = torch.eye(shapes.width, dtype=torch.float64)
    chosen = list(PRODUCTS) if products == "both" else [products]
    warm = Shapes(out=(64,), width=256)  # the libraries' own start is not measured
    streamed(warm.weights(), [random_concept(warm, 0)], torch.eye(256, dtype=torch.float64), 1.0, torch.float64)
    peaks = {name: peak(dtype) for name, dtype in PRODUCTS.items() if name in chosen}
    rates = ", ".join(f"{str(PRODUCTS[name]).rpartition('.')[2]} {rate / 1e9:.0f}" for name, rate in peaks.items())
    lines.append(f"matrix products of this machine, in GFLOP/s: {rates} ({torch.get_num_threads()} threads)")
    rounds = [(name, concepts) for name in chosen] + ([(chosen[0], reference)] if reference else [])
    for name, count in rounds:
        W, label = shapes.weights(), f"{name}, {count} concepts"
        with Meter() as meter:
            feed = meter.feed(shapes, count, lambda i, s=label, n=count: tell(s, i + 1, n, ""))
            streamed(W, feed, P, 1.0, PRODUCTS[name], spent := Spent())
        results[name, count], needed = (W, meter), operations(shapes, count)
        share = sum(needed.values()) / meter.seconds / peaks[name]
        lines.append(
            f"stages 1+3, {label}: {meter.seconds:.2f} s, {share:.0%} of the products' rate, {meter.megabytes:.0f} MB "
            f"above the start\n  {spent.profile(needed, peaks[name])} of that rate"
        )
    if products == "both":
        lines.append(
            f"mixed against fp64: max relative error {_error(results, *((n, concepts) for n in PRODUCTS)):.1e}"
        )
    if reference:
        W, label = shapes.weights(), f"per layer, {reference} concepts"
        with Meter() as meter:
            count = iter(range(1, 2 * reference + 1))
            per_layer(
                W, lambda: meter.feed(shapes, reference, lambda i: tell(label, next(count), 2 * reference, "")), P, 1.0
            )
        results["reference", reference], ours = (W, meter), results[chosen[0], reference][1]
        error = _error(results, (chosen[0], reference), ("reference", reference))
        lines.append(f"{label}: {meter.seconds:.2f} s, {meter.megabytes:.0f} MB above the start")
        times, memory = meter.seconds / ours.seconds, meter.megabytes / max(ours.megabytes, 1e-3)
        lines.append(f"ratio: {times:.1f} in time, {memory:.1f} in memory; max relative error {error:.1e}")
    if toggle:
        erasure = random_erasure(shapes, concepts)
        W = dict(zip(erasure.layers, shapes.weights(), strict=True))
        model = {name: w.clone() for name, w in W.items()}
        with Meter() as meter:
            for name, w in erasure.weights(W):
                model[name].copy_(w)
        lines.append(
            f"stages 1+3 of an erasure of {concepts} concepts, from its factors: {meter.seconds:.2f} s, "
            f"{meter.megabytes:.0f} MB above the start"
        )
        lines.append(f"one of {concepts} concepts off, and on again: {', '.join(_toggle(erasure, W, model))}")
    return lines


def _toggle(erasure: Erasure, W: dict[str, Tensor], model: dict[str, Tensor]) -> list[str]:
    """Time to leave one concept out, and to take it in again: the solves, and every weight of the model written."""
    said = []
    for change in (lambda e: e.without("concept 0"), lambda e: e + erasure.only("concept 0")):
        spent = Spent()
        with spent.on("solves"):
            erasure_ = change(erasure if not said else erasure_)  # noqa: F821
            _ = erasure_.fusion  # solved where it is first asked for
        with spent.on("weights"):
            for name, w in erasure_.weights(W):
                model[name].copy_(w)
        parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in spent.seconds.items())
        said.append(f"{sum(spent.seconds.values()):.2f} s ({parts})")
    return said


def _error(results: dict, one: tuple, other: tuple) -> float:
    """Largest difference between two results, relative to the largest weight."""
    pairs = list(zip(results[one][0], results[other][0], strict=True))
    return max(float((a - b).abs().max()) for a, b in pairs) / max(float(b.abs().max()) for _, b in pairs)
