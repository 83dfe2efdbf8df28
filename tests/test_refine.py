import pytest
import torch
from brute import refine_reference, relative, token_rows
from torch import eye, float32, float64

from macelib.bench import Meter
from macelib.concepts import Concept, anchored, prompts
from macelib.errors import MaceError
from macelib.method.refine import (
    accumulate,
    compress,
    concept_sums,
    concept_texts,
    condition_number,
    gram,
    rank_for,
    solve_refinement,
    tiny_ridge,
)
from macelib.models.text import encode
from macelib.models.tiny import tiny_pipeline
from macelib.models.tokens import align

D_SD, OUT = 96, (40, 64)  # width of the test's embeddings, out features of its layers


def rows(n=1500, d=D_SD, seed=0):
    e_f = token_rows(n, d, seed)
    e_g = e_f + 0.2 * token_rows(n, d, seed + 100)
    e_g[::77] = e_f[::77]  # [BOS] is the same in every prompt
    return e_f, e_g


def layers(d=D_SD):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(out, d, generator=g) / d**0.5 for out in OUT]


@pytest.mark.parametrize(("lambda1", "lambda0"), [(0.0, 0.0), (0.0, 1.0), (30.0, 1e-3), (300.0, 10.0)])
@pytest.mark.parametrize(("products", "tolerance"), [(float64, 1e-9), (float32, 1e-6)])
def test_one_map_equals_eq2_layer_by_layer(lambda1, lambda0, products, tolerance):
    e_f, e_g = rows()
    e_p = token_rows(400, D_SD, 7)
    X = G = None
    for f, g in zip(e_f.split(500), e_g.split(500), strict=True):
        X, G = accumulate(f, g, X, G, products)
    found = solve_refinement(X, G, gram(e_p), lambda1, lambda0)
    for W in layers():
        expected = refine_reference(W, e_f, e_g, e_p, lambda1, lambda0)
        assert relative(W.double() @ found.R, expected) <= tolerance
        assert relative((W @ found.R.float()), expected) <= 1e-5  # as applied
        assert relative(W, expected) > 0.01  # there was something to find
    assert found.residual < 1e-12


@pytest.mark.parametrize(("products", "tolerance"), [(float64, 1e-14), (float32, 1e-7), ("mixed", 1e-7)])
def test_sums_over_many_chunks(products, tolerance):
    e_f, e_g = rows(9001, 37)
    X, G = accumulate(e_f[:5000], e_g[:5000], products=products)
    again = accumulate(e_f[5000:], e_g[5000:], X, G, products)
    assert again[0] is X and again[1] is G  # in place
    assert relative(X, e_g.double().T @ e_f.double()) <= tolerance
    assert relative(G, e_f.double().T @ e_f.double()) <= tolerance
    assert torch.equal(G, G.T) and G.dtype == X.dtype == float64


def test_mixed_precision_on_rows_that_are_all_loud_or_none():
    zeros, one = torch.zeros(3, 8), torch.ones(1, 8)
    assert torch.equal(gram(zeros, products=float32), torch.zeros(8, 8, dtype=float64))
    assert torch.equal(gram(torch.cat([zeros, one]), products=float32), torch.ones(8, 8, dtype=float64))
    assert torch.equal(gram(zeros[:0], products=float32), torch.zeros(8, 8, dtype=float64))


def test_condition_number():
    e_f, e_g = rows()
    _, G = accumulate(e_f, e_g)
    S = G + eye(D_SD)
    found = condition_number(S, torch.linalg.cholesky(S))
    exact = float(torch.linalg.cond(S))
    assert 0.9 * exact <= found <= exact * (1 + 1e-9)


def test_without_a_ridge_directions_that_are_left_empty_get_a_tiny_one(caplog):
    e_f, e_g = (r[:, :8] for r in rows(40))
    X, G = accumulate(e_f, e_g)
    assert tiny_ridge(G) == 0
    assert relative(solve_refinement(X, G, lambda0=0.0).R, torch.linalg.solve(G, X.T).T) <= 1e-9 and not caplog.text
    few = torch.zeros(10, 10, dtype=float64)
    few[:8, :8], wide = G, torch.zeros(10, 10, dtype=float64)
    wide[:8, :8] = X
    ridge = 1e-8 * float(few.trace()) / 10
    assert tiny_ridge(few) == ridge and "directions empty" in caplog.text
    assert torch.equal(solve_refinement(wide, few, lambda0=0.0).R, solve_refinement(wide, few, lambda0=ridge).R)
    assert tiny_ridge(torch.diag(torch.tensor([1.0, 1e-11], dtype=float64))) == 0
    assert tiny_ridge(torch.diag(torch.tensor([1.0, 1e-13], dtype=float64))) == 0.5e-8 * (1 + 1e-13)


def test_refusals():
    e_f, e_g = rows(20)
    X, G = accumulate(e_f, e_g)
    with pytest.raises(MaceError, match=r"singular .* raise λ0"):
        solve_refinement(0 * X, 0 * G, lambda0=0.0)
    with pytest.raises(MaceError, match="needs a prior"):
        solve_refinement(X, G, lambda1=1.0)
    with pytest.raises(MaceError, match="not be negative"):
        solve_refinement(X, G, lambda0=-1.0)
    with pytest.raises(MaceError, match="not finite"):
        solve_refinement(X, G * float("nan"))
    with pytest.raises(MaceError, match="Rows must pair"):
        accumulate(e_f, e_g[1:])
    with pytest.raises(MaceError, match="products"):
        accumulate(e_f, e_g, products=torch.float16)


def sums(d=D_SD, n=700, rank=None):
    e_f, e_g = rows(n, d)
    own = token_rows(60, d, 3)
    if rank:
        basis = torch.randn(d, rank, generator=torch.Generator().manual_seed(5), dtype=float64)
        e_f, own = e_f.double()[:, :rank] @ basis.T, own.double()[:, :rank] @ basis.T
    X, G = accumulate(e_f, e_g)
    return X, G, gram(own, G.clone())


@pytest.mark.parametrize("rank", [None, 20])
def test_exact_compression(rank):
    X, G, C = sums(rank=rank)
    s = compress(X, G, C)
    assert s.Q.shape[1] == (rank or D_SD) and s.lost < 1e-12
    assert (s.Q.T @ s.Q - eye(s.Q.shape[1])).abs().max() < 1e-12
    for found, exact in ((s.X(), X), (s.G(), G), (s.C(), C)):
        assert relative(found, exact) <= 1e-9
    M = torch.randn(3, D_SD, generator=torch.Generator().manual_seed(0))
    assert relative(s.times_C(M), M.double() @ C) <= 1e-9


def test_randomized_compression_keeps_the_leading_directions():
    X, G, C = sums()
    s, values = compress(X, G, C, rank=24), torch.linalg.eigvalsh(C)
    best = 1 - float(values[-24:].sum() / values.sum())
    assert s.Q.shape == s.Y.shape == (D_SD, 24) and best <= s.lost <= 1.02 * best
    again = compress(X, G, C, rank=24)
    assert torch.equal(s.Q, again.Q) and torch.equal(s.Gq, again.Gq)  # no hidden randomness
    assert torch.linalg.eigvalsh(C - s.C())[0] > -1e-3 * values[-1]  # what is left is still (nearly) a sum of squares


def test_strength():
    s = compress(*sums())
    half = s.scaled(0.5)
    assert relative(half.X(), 0.5 * (s.X() + s.G())) <= 1e-12 and torch.equal(half.G(), s.G())
    R = solve_refinement(s.scaled(0.0).X(), s.G(), lambda0=1.0).R
    assert (R - eye(D_SD)).abs().max() < 1e-9
    assert relative(s.scaled(1.0).X(), s.X()) <= 1e-12


@pytest.mark.parametrize("d", [16, 192, 768, 1024, 2048])
def test_factors_fit_their_budget(d):
    def size(k):
        return 4 * (2 * d * k + k * (k + 1))

    k = rank_for(d)
    assert 1 <= k <= d and size(k) <= 300_000 and (k == d or size(k + 1) > 300_000)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_sums_of_a_concept_token_by_token(kind):
    pipe = tiny_pipeline(kind)
    concept = Concept("old ship", "sea", templates=["a {}", "the {}'s {}", "{} by night"])
    X, G, C = concept_sums(pipe, concept)
    e, a = encode(pipe, prompts(concept)).double(), encode(pipe, anchored(concept)).double()
    d = e.shape[-1]
    X_, G_, C_ = (torch.zeros(d, d, dtype=float64) for _ in range(3))
    for i, template in enumerate(concept.templates):
        pair = align(pipe.tokenizer, template, concept.name, concept.anchor)
        for s, t in zip(pair.source.tolist(), pair.target.tolist(), strict=True):
            X_ += torch.outer(a[i, t], e[i, s])
            G_ += torch.outer(e[i, s], e[i, s])
        for token in e[i]:  # all T of them
            C_ += torch.outer(token, token)
    for found, expected in ((X, X_), (G, G_), (C, C_)):
        assert relative(found, expected) <= 1e-12
    s = compress(*concept_sums(pipe, concept, "mixed")).to("cpu", float32)
    assert s.Q.dtype == float32 and relative(s.C(), C) <= 1e-5 and relative(s.X(), X) <= 1e-5


def test_anchors_are_read_once():
    pipe, cache = tiny_pipeline(), {}
    for name in ("ship", "boat", "raft"):
        concept_texts(pipe, Concept(name, "sea"), cache)
    assert len(cache) == 1
    raft = Concept("raft", "sea")
    one, two = concept_sums(pipe, raft), concept_sums(pipe, raft, texts=concept_texts(pipe, raft, cache))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_memory_is_bounded():
    e_f, e_g = rows(120_000, 128)
    accumulate(e_f[:5000], e_g[:5000])
    with Meter() as meter:
        accumulate(e_f, e_g)
    assert meter.megabytes < 40  # the rows in float64 are 246 MB
    with Meter() as meter:
        kept = e_f.double() + e_g.double()
    assert meter.megabytes > 100 and len(kept)  # what the meter is there to see
