"""The closed forms among the baselines, each against an independent brute-force form of its equation, in float64."""

import pytest
import torch
from brute import relative
from torch import eye, float64

from macelib.baselines.dp import dp_map, safe_anchors
from macelib.baselines.oce import OCE, layer_rotation, rotation, subspace, subspace_objective, vector_objective
from macelib.baselines.rece import RECE, adversarial_map, rece_map
from macelib.baselines.speed import invariant, k_means, null_projector, plain_step, refine_kept, speed_update, weakest
from macelib.baselines.uce import uce_map
from macelib.errors import MaceError

D, OUT = 24, 30


def columns(n, seed, d=D):
    return torch.randn(d, n, generator=torch.Generator().manual_seed(seed), dtype=float64)


def weight(seed=0, out=OUT, d=D):
    return torch.randn(out, d, generator=torch.Generator().manual_seed(seed), dtype=float64) / d**0.5


def least_squares(W, pairs, ridge):
    """argmin_W' Σ_k w_k ‖W' X_k − W Y_k‖² + ridge ‖W' − W‖² on stacked rows, by QR: no Gram matrix is formed."""
    rows = [w**0.5 * X.T for w, X, _ in pairs] + [ridge**0.5 * eye(W.shape[1], dtype=float64)]
    targets = [w**0.5 * (W @ Y).T for w, _, Y in pairs] + [ridge**0.5 * W.T]
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(targets), driver="gels").solution.T


# --- UCE ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "m", "alpha", "beta", "lambda_"), [(1, 0, 1, 1, 0.5), (5, 7, 2.0, 0.3, 0.1), (40, 9, 1, 1, 5)]
)
def test_uce_is_its_least_squares_problem(n, m, alpha, beta, lambda_):
    C, A, P0 = columns(n, 1), columns(n, 2), columns(m, 3)
    R = uce_map(C, A, P0, alpha, beta, lambda_)
    for seed in (0, 1):  # every layer has the same map
        W = weight(seed)
        assert relative(W @ R, least_squares(W, [(alpha, C, A), (beta, P0, P0)], lambda_)) < 1e-10


def test_uce_of_one_concept_without_ridge_maps_it_onto_its_anchor():
    c, a = columns(1, 1), columns(1, 2)
    gaps = [relative(uce_map(c, a, columns(0, 3), beta=0.0, lambda_=ridge) @ c, a) for ridge in (1.0, 1e-3, 1e-6)]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-6
    with pytest.raises(MaceError, match="singular"):
        uce_map(c, a, columns(0, 3), beta=0.0, lambda_=0.0)


def test_a_name_that_is_its_own_anchor_changes_nothing():
    C = columns(3, 1)
    assert relative(uce_map(C, C, columns(2, 2)), eye(D, dtype=float64)) < 1e-12


# --- RECE ---------------------------------------------------------------------------------------------------------


def test_adversarial_embedding_is_its_least_squares_problem():
    """c' = argmin Σ_l ‖W_l R c' − W_l c‖² + γ ‖c'‖² by stacked rows over three layers."""
    layers, R, c, gamma = [weight(s) for s in range(3)], eye(D, dtype=float64) + 0.3 * weight(9, D), columns(4, 5), 0.05
    rows = torch.cat([W @ R for W in layers] + [gamma**0.5 * eye(D, dtype=float64)])
    targets = torch.cat([W @ c for W in layers] + [torch.zeros(D, 4, dtype=float64)])
    expected = torch.linalg.lstsq(rows, targets, driver="gels").solution
    H = sum(W.T @ W for W in layers)
    assert relative(adversarial_map(R, H, gamma) @ c, expected) < 1e-10
    full = adversarial_map(R, H, 0.0)  # without a ridge: the embedding that R maps onto c
    assert relative(R @ full @ c, c) < 1e-9


def test_rece_is_rounds_of_uce_on_the_edited_layers():
    C, A, P0, rest, W = columns(6, 1), columns(6, 2), columns(4, 3), columns(5, 4), weight(0)
    settings = RECE(gamma=0.1, epochs=2)
    edited = least_squares(W, [(1.0, C, A), (0.1, P0, P0)], 0.1)
    for _ in range(2):
        rows = torch.cat([edited, 0.1**0.5 * eye(D, dtype=float64)])
        targets = torch.cat([W @ C, torch.zeros(D, 6, dtype=float64)])
        again = torch.linalg.lstsq(rows, targets, driver="gels").solution
        edited = least_squares(edited, [(1.0, again, A), (0.1, rest, rest)], 0.1)
    assert relative(W @ rece_map(C, A, P0, rest, W.T @ W, settings), edited) < 1e-8
    none = rece_map(C, A, P0, rest, W.T @ W, RECE(epochs=0))
    assert torch.equal(none, uce_map(C, A, P0, 1.0, 0.1, 0.1))


# --- SPEED --------------------------------------------------------------------------------------------------------


def speed_sums(n=3):
    C, A, P0, K = columns(n, 1), columns(n, 2), columns(8, 3), columns(4, 4)
    S = P0 @ P0.T / 8
    return C, A, P0, K, C @ C.T / n, A @ C.T / n, null_projector(S, 1e-6)


@pytest.mark.parametrize(("rho", "constrained"), [(0.05, False), (1.0, False), (0.05, True), (1.0, True)])
def test_speed_minimises_its_constrained_objective(rho, constrained):
    """By least squares in an explicit basis of {Δ : Δ P0 = 0, Δ K = 0}; Δ = Z Nᵀ, which the formula never forms."""
    (C, A, P0, K, T, B, P), n, W = speed_sums(), 3, weight(0)
    update = W @ speed_update(T, B, P, K if constrained else None, rho)
    N = torch.linalg.svd(torch.cat([P0, K], 1) if constrained else P0).U[:, 12 if constrained else 8 :]
    rows = torch.cat([(N.T @ C).T / n**0.5, rho**0.5 * eye(N.shape[1], dtype=float64)])
    targets = torch.cat([(W @ (A - C)).T / n**0.5, torch.zeros(N.shape[1], OUT, dtype=float64)])
    Z = torch.linalg.lstsq(rows, targets, driver="gels").solution.T
    assert relative(update, Z @ N.T) < 1e-9
    assert (update @ P0).abs().max() < 1e-12
    assert not constrained or (update @ K).abs().max() < 1e-11


def test_speed_with_mu_is_a_penalty_instead_of_a_constraint():
    (C, A, P0, K, T, B, P), n, W, mu = speed_sums(), 3, weight(0), 0.5
    N = torch.linalg.svd(P0).U[:, 8:]
    rows = torch.cat([(N.T @ C).T / n**0.5, (N.T @ K).T / mu**0.5, eye(N.shape[1], dtype=float64)])
    targets = torch.cat([(W @ (A - C)).T / n**0.5, torch.zeros(4 + N.shape[1], OUT, dtype=float64)])
    Z = torch.linalg.lstsq(rows, targets, driver="gels").solution.T
    assert relative(W @ speed_update(T, B, P, K, 1.0, mu), Z @ N.T) < 1e-9


def test_speed_without_anything_kept_reaches_the_anchor_as_rho_vanishes():
    c, a = columns(1, 1), columns(1, 2)
    D_ = speed_update(c @ c.T, a @ c.T, eye(D, dtype=float64), None, 1e-9)
    assert relative((eye(D, dtype=float64) + D_) @ c, a) < 1e-6


def test_constraint_inside_the_kept_span_is_no_obstacle():
    *_, T, B, P = speed_sums()
    inside = columns(8, 3)[:, :2]  # P K = 0: Kᵀ P M K is zero
    assert relative(speed_update(T, B, P, inside), speed_update(T, B, P)) < 1e-9


def test_null_space_is_absolute_or_relative():
    S = torch.diag(torch.tensor([100.0, 10.0, 0.05, 1e-6], dtype=float64))
    assert null_projector(S, 0.1).diag().tolist() == [0, 0, 1, 1]
    assert null_projector(S, 1e-4, relative=True).diag().tolist() == [0, 0, 0, 1]
    P0 = columns(5, 3)
    theta = float(torch.linalg.eigvalsh(P0 @ P0.T)[-5:].mean())  # some of the five are below it
    whole, small = (null_projector(P0 @ P0.T, theta, span=s) for s in (None, P0 @ columns(5, 4, 5)))
    assert relative(small, whole) < 1e-10 and 20 <= round(float(whole.trace())) <= 23


def test_filter_and_augmentation_column_by_column():
    C, A, P0 = columns(3, 1), columns(3, 2), columns(8, 3)
    W, T, B = weight(0), C @ C.T / 3, A @ C.T / 3
    step = W @ (B - T) @ torch.linalg.inv(eye(D, dtype=float64) + T)
    sizes = [float((step @ p).norm()) for p in P0.T]
    kept = [p for p, size in zip(P0.T, sizes, strict=True) if size > sum(sizes) / len(sizes)]
    assert 0 < len(kept) < 8
    moves, H = plain_step(T, B), W.T @ W
    assert relative(W @ moves, step) < 1e-12
    assert torch.equal(refine_kept(P0, moves, H, P0[:, :0], True, 0), torch.stack(kept, 1))
    v = torch.linalg.svd(W).Vh[-1]
    few = weight(1, 10)  # fewer rows than columns: not of the null space
    assert (weakest(few.T @ few, 10)[:, 0] @ torch.linalg.svd(few, full_matrices=False).Vh[-1]).abs() > 1 - 1e-9
    noise = torch.randn(len(kept) * 5, D, generator=torch.Generator().manual_seed(4), dtype=float64)
    more = [p + v * (v @ noise[5 * i + j]) for i, p in enumerate(kept) for j in range(5)]
    sizes = torch.stack([(step @ p).norm() for p in more])
    expected = torch.stack([*kept, *(p for p, s in zip(more, sizes, strict=True) if s > sizes.mean())], 1)
    found = refine_kept(P0, moves, H, weakest(H, OUT), True, 5, seed=4)
    assert found.shape == expected.shape and relative(found, expected) < 1e-9


def test_invariant_columns():
    e = columns(77, 1).T
    K = invariant(e, seed=3)
    assert K.shape == (D, 4) and torch.equal(K[:, 0], e[0]) and torch.equal(K, invariant(e, seed=3))
    nearest = torch.cdist(e[1:], K[:, 1:].T).argmin(1)
    for i in range(3):  # a fixed point of Lloyd's rounds
        assert relative(e[1:][nearest == i].mean(0), K[:, 1 + i]) < 1e-12
    assert torch.equal(k_means(e[:2], 2), k_means(e[:2], 2)) and len(k_means(e[:2], 2).unique(dim=0)) == 2


# --- OCE ----------------------------------------------------------------------------------------------------------


def polar(M):
    """The orthogonal factor of M by Newton's iteration: no SVD."""
    Q = M.clone()
    for _ in range(60):
        Q = (Q + torch.linalg.inv(Q).T) / 2
    return Q


def test_rotation_is_the_polar_factor_and_the_best_one():
    M = columns(D, 1)
    Q = rotation(M)
    assert relative(Q, polar(M)) < 1e-6
    for seed in range(20):
        other = torch.linalg.qr(Q + 0.1 * columns(D, seed)).Q
        assert (other * M).sum() < (Q * M).sum()


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_reflections(seed):
    M = columns(6, seed, 6)
    if torch.linalg.det(rotation(M)) > 0:
        M[0] *= -1
    leave, u, q = (rotation(M, how) for how in ("leave", "flip_u", "flip_q"))
    assert torch.linalg.det(leave) < 0 < torch.linalg.det(u) and torch.linalg.det(q) > 0
    value = [float((Q.T @ M).trace()) for Q in (leave, u, q)]
    assert value[0] > value[1] > value[2]  # the code's flip is not the best rotation
    assert all(relative(Q.T @ Q, eye(6, dtype=float64)) < 1e-12 for Q in (leave, u, q))


def test_subspace_objective_term_by_term():
    W, C, A, P0 = weight(0), columns(3, 1), columns(3, 2), columns(4, 3)
    tokens = columns(50, 4)
    s = OCE(eta=20.0, zeta=3.0, kappa=2.0, lambda_=5.0)
    U, U_star = (torch.linalg.svd(W @ X, full_matrices=False).U for X in (C, A))  # the same spans by another route
    assert relative(subspace(W @ C), U @ U.T) < 1e-12
    expected = -20 * U @ U.T @ (eye(OUT, dtype=float64) - U_star @ U_star.T)
    expected += 3 * sum(torch.outer(W @ e, W @ e) for e in tokens.T) / 50
    expected += 2 * sum(torch.outer(W @ p, W @ p) for p in P0.T) + 5 * W @ W.T
    assert relative(subspace_objective(W, C, A, P0, tokens @ tokens.T / 50, s), expected) < 1e-12


@pytest.mark.parametrize("n", [3, OUT, 40])
def test_one_anchor_for_all_spans_one_direction(n):
    a = columns(1, 1, OUT)
    near = a + 1e-7 * columns(n, 2, OUT)  # but for rounding
    for A, gap in ((a.expand(OUT, n), 1e-12), (near, 1e-6)):
        assert relative(subspace(A), a @ a.T / a.square().sum()) < gap


def test_vector_form_minimises_its_distance_over_rotations():
    """Gradient descent on Q = exp(S) Q0, S antisymmetric, cannot do better."""
    W, C, A, P0 = weight(0, 8, 6), columns(2, 1, 6), columns(2, 2, 6), columns(20, 3, 6)

    def loss(Q):
        return (Q @ W @ C - W @ A).square().sum() + (Q @ W @ P0 - W @ P0).square().sum()

    Q = rotation(vector_objective(W, C, A, P0), "flip_u")
    S = torch.zeros(8, 8, dtype=float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([S], max_iter=400, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        value = loss(torch.linalg.matrix_exp(S - S.T))
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        found, best = float(loss(torch.linalg.matrix_exp(S - S.T))), float(loss(Q))
    assert best <= found * (1 + 1e-9) and found <= best * (1 + 1e-4)


@pytest.mark.parametrize("form", ["subspace", "vector"])
def test_rotation_within_the_span_of_a_tall_layer(form):
    """As the SVD of the whole (o, o) objective, for all that W can put out; I for the rest."""
    W, C, A, P0, K0 = weight(0, 40), columns(3, 1), columns(3, 2), columns(30, 3), columns(50, 4) @ columns(50, 4).T
    s = OCE(form=form, eta=5000.0, kappa=1.0)
    M = subspace_objective(W, C, A, P0, K0, s) if form == "subspace" else vector_objective(W, C, A, P0)
    Q = layer_rotation(W, C, A, P0, K0 if form == "subspace" else None, s)
    outside = torch.linalg.svd(W).U[:, D:]
    assert relative(Q @ W, rotation(M) @ W) < 1e-9 and relative(Q @ outside, outside) < 1e-12
    assert relative(Q.T @ Q, eye(40, dtype=float64)) < 1e-12 and relative(Q @ W, W) > 0.01
    wide = weight(0, 10)
    M = subspace_objective(wide, C, A, P0, K0, s) if form == "subspace" else vector_objective(wide, C, A, P0)
    assert relative(layer_rotation(wide, C, A, P0, K0 if form == "subspace" else None, s), rotation(M)) < 1e-12


def test_what_the_objective_leaves_open_does_not_rotate():
    """Few names determine few directions; the rest neither turns nor changes with the last digits of an anchor."""
    W, C, A, P0 = weight(0, D), columns(2, 1), columns(2, 2), columns(4, 3)
    M, near = (vector_objective(W, C, anchor, P0) for anchor in (A, A + 1e-12 * columns(2, 4)))
    Q = rotation(M)
    assert relative(rotation(near), Q) < 1e-3
    open_ = torch.linalg.svd(W @ torch.cat([C, A, P0], 1)).U[:, 8:]
    assert relative(Q @ open_, open_) < 1e-6 and relative(Q.T @ Q, eye(D, dtype=float64)) < 1e-12
    assert abs(float((Q * M).sum() / torch.linalg.matrix_norm(M, "nuc")) - 1) < 1e-6
    assert relative(rotation(0 * M), eye(D, dtype=float64)) < 1e-12


def test_without_targets_nothing_rotates():
    W = weight(0, 8, 24)
    M = subspace_objective(W, columns(1, 1), columns(1, 1), columns(3, 2), eye(D, dtype=float64), OCE())
    assert relative(rotation(M), eye(8, dtype=float64)) < 1e-9  # c = a: G (I − G*) = 0, what is left is symmetric


# --- DP -----------------------------------------------------------------------------------------------------------


def test_dp_keeps_and_moves_exactly():
    C, A, P0 = columns(3, 1), columns(3, 2), columns(8, 3)
    R, condition = dp_map(C, A, P0)
    assert (R @ P0 - P0).abs().max() < 1e-12 and (R @ C - A).abs().max() < 1e-11 and 1 <= condition < 100


def test_dp_is_the_smallest_update_that_does_so():
    """Of all D with D P0 = 0 and D C = A − C, the one of least Frobenius norm: rows solved one by one, minimum norm."""
    C, A, P0 = columns(3, 1), columns(3, 2), columns(8, 3)
    rows = torch.cat([P0, C], 1).T  # (11, d): rows @ D[i] = targets[:, i]
    targets = torch.cat([torch.zeros(8, D, dtype=float64), (A - C).T])
    expected = torch.linalg.lstsq(rows, targets, driver="gelsd").solution.T
    assert relative(dp_map(C, A, P0)[0] - eye(D, dtype=float64), expected) < 1e-9


def test_dp_of_one_target():
    c, a, P0 = columns(1, 1), columns(1, 2), columns(8, 3)
    x = c - P0 @ torch.linalg.lstsq(P0, c).solution  # what of c is outside of what is kept
    expected = eye(D, dtype=float64) + (a - c) @ x.T / x.square().sum()
    assert relative(dp_map(c, a, P0)[0], expected) < 1e-10


def test_dp_with_dependent_targets_gets_a_ridge():
    C, A, P0 = columns(3, 1), columns(3, 2), columns(8, 3)
    C = torch.cat([C, C[:, :1] + 1e-9 * columns(1, 9)], 1)
    R, condition = dp_map(C, torch.cat([A, columns(1, 8)], 1), P0, rho=1e-4)
    U2 = torch.linalg.svd(P0).U[:, 8:]
    X, gap = U2.T @ C, torch.cat([A, columns(1, 8)], 1) - C
    ridge = 1e-4 * float(torch.linalg.matrix_norm(C, 2)) ** 2
    rows = torch.cat([X.T, ridge**0.5 * eye(16, dtype=float64)])
    Z = torch.linalg.lstsq(rows, torch.cat([gap.T, torch.zeros(16, D, dtype=float64)]), driver="gels").solution.T
    assert condition > 1e6 and relative(R - eye(D, dtype=float64), Z @ U2.T) < 1e-9
    with pytest.raises(MaceError, match="span all 24 directions"):
        dp_map(C, C, columns(30, 3))


def test_dp_of_a_target_that_is_nearly_kept_stays_bounded():
    P0, a = columns(8, 3), columns(1, 2)
    inside = P0 @ columns(1, 4, 8)
    R, condition = dp_map(inside + 1e-9 * columns(1, 5), a, P0)
    assert condition > 1e6 and torch.linalg.matrix_norm(R - eye(D, dtype=float64), 2) < 1
    with pytest.raises(MaceError, match="lie in the span of what is preserved"):
        dp_map(inside, a, P0)


def test_dp_with_k_leaves_the_first_directions():
    C, A, P0 = columns(2, 1), columns(2, 2), columns(30, 3)
    R, _ = dp_map(C, A, P0, k=5)
    first = torch.linalg.svd(P0).U[:, :5]
    assert (R @ first - first).abs().max() < 1e-12 and relative(R @ C, A) < 1e-9
    assert (R @ P0 - P0).abs().max() > 0.01
    few = columns(3, 4)
    assert relative(dp_map(C, A, few, k=5)[0], dp_map(C, A, few)[0]) < 1e-12  # it has no more than three


def test_dp_of_many_columns_takes_no_more_room_than_they_do():
    C, A, many = columns(2, 1), columns(2, 2), columns(20_000, 3)
    first = torch.linalg.eigh(many @ many.T).eigenvectors[:, -5:]
    R, _ = dp_map(C, A, many, k=5)  # a factor of 20,000 x 20,000 would be 3 GB
    assert (R @ first - first).abs().max() < 1e-9


def test_safe_anchors_are_the_nearest_points_of_the_safe_span():
    C, S = columns(2, 1), columns(5, 2)
    A = safe_anchors(C, S)
    Q = torch.linalg.qr(S).Q
    assert relative(A, Q @ (Q.T @ C)) < 1e-12 and (S.T @ (C - A)).abs().max() < 1e-12
