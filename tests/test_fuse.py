import pytest
import torch
from brute import fuse_reference, fused, relative, token_rows, weight_of
from torch import float32

from macelib.errors import MaceError
from macelib.method.fuse import changed, fuse_sums, less_identity
from macelib.method.refine import accumulate, compress, gram, solve_refinement

D, LAYERS = 80, {"a.to_k": 40, "a.to_v": 64}


def problem(concepts=3, rank=2):
    """W by layer, R, and per concept its rows e (n, d), B and D by layer; the last concept has another rank."""
    g = torch.Generator().manual_seed(0)
    W = {name: torch.randn(out, D, generator=g) / D**0.5 for name, out in LAYERS.items()}
    e = [token_rows(300 + 50 * i, D, i) for i in range(concepts)]
    X, G = accumulate(torch.cat(e), torch.cat(e) + 0.2 * token_rows(sum(map(len, e)), D, 50))
    R = solve_refinement(X, G, lambda0=1.0).R
    ranks = [rank] * (concepts - 1) + [rank + 1]
    B = [{n: torch.randn(out, r, generator=g) for n, out in LAYERS.items()} for r in ranks]
    Ds = [{n: torch.randn(r, D, generator=g) / D**0.5 for n in LAYERS} for r in ranks]
    return W, R, e, B, Ds


@pytest.mark.parametrize(("lambda2", "lambda0"), [(0.0, 0.0), (0.0, 1.0), (30.0, 1e-3), (300.0, 10.0)])
def test_one_solve_equals_eq7_layer_by_layer(lambda2, lambda0):
    W, R, e, B, Ds = problem()
    e_p = token_rows(500, D, 9)
    fusion = fused(R, Ds, [gram(x) for x in e], gram(e_p), lambda2, lambda0)
    for name, w in W.items():
        B_, D_ = [b[name] for b in B], [d[name] for d in Ds]
        expected = fuse_reference(w, w.double() @ R, B_, D_, e, e_p, lambda2, lambda0)
        assert relative(weight_of(w.double(), fusion, B, name), expected) <= 1e-9
        assert relative(weight_of(w, fusion, B, name, float32), expected) <= 1e-5
        assert relative(w.double() @ R, expected) > 0.01
        assert weight_of(w, fusion, B, name).dtype == float32


def test_factors_give_what_matrices_give():
    _, _, e, _, Ds = problem()
    for c, d in zip(map(gram, e), Ds, strict=True):
        assert relative(compress(c, c, c).times_C(d["a.to_v"]), d["a.to_v"].double() @ c) <= 1e-9


def test_limits():
    W, R, e, B, Ds = problem()
    C = [gram(x) for x in e]
    alone = fused(R, Ds[:1], C[:1], lambda0=1e-9)  # nothing to share with: the LoRA itself
    assert relative(alone.D_star[0], Ds[0]["a.to_k"]) <= 1e-6 and torch.equal(alone.R_tilde, R)
    kept = fused(R, Ds, C, gram(token_rows(500, D, 9)), lambda2=1e12)  # a prior above all else: the original
    w = W["a.to_k"].double()
    assert relative(weight_of(w, kept, B, "a.to_k"), w) <= 1e-5
    ridge = fused(R, Ds, C, lambda0=1e15)  # a ridge above all else: W'
    assert relative(weight_of(w, ridge, B, "a.to_k"), w @ R) <= 1e-6
    none = fuse_sums(R, R.new_zeros(0, D), 0 * R)
    assert none.D_star.shape == (0, D) and torch.equal(none.R_tilde, R)
    assert relative(changed(w, less_identity(none.R_tilde), "a.to_k"), w @ R) <= 1e-12


def test_a_concept_can_leave_by_subtraction():
    _, R, e, _, Ds = problem()
    C = [gram(x) for x in e]
    DC = torch.cat([d["a.to_k"].double() @ c for d, c in zip(Ds[:2], C[:2], strict=True)])
    downdated = fuse_sums(R, DC, sum(C) - C[2])
    afresh = fused(R, Ds[:2], C[:2])
    assert relative(downdated.D_star, afresh.D_star[0]) <= 1e-10


def test_refusals():
    _, R, e, _, Ds = problem()
    with pytest.raises(MaceError, match="needs a prior"):
        fused(R, Ds, [gram(x) for x in e], lambda2=1.0)
    with pytest.raises(MaceError, match="singular"):
        fused(R, Ds[:1], [0 * gram(e[0][:5])], lambda0=0.0)


def test_without_a_ridge_empty_directions_get_a_tiny_one(caplog):
    _, R, e, _, Ds = problem()
    C = gram(e[0][:5])
    found, expected = (fused(R, Ds[:1], [C], lambda0=l0) for l0 in (0.0, 1e-8 * float(C.trace()) / len(C)))
    assert torch.equal(found.R_tilde, expected.R_tilde) and "directions empty" in caplog.text
