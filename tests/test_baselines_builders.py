"""Which columns each closed form reads, in the pipeline: everything from the text encoder by hand, own anchors each."""

import pytest
import torch
from brute import relative
from torch import eye, float64

from macelib import Concept, MaceError
from macelib.baselines import build, method, tunable
from macelib.baselines import semantic_surgery as surgery
from macelib.baselines.columns import states, token_mean
from macelib.baselines.registry import Request
from macelib.baselines.sld import GRID as SLD_GRID
from macelib.baselines.speed import invariant
from macelib.evaluate.tuning import KINDS, Grid, trials
from macelib.files import data_folder
from macelib.models.pipelines import kv_weights
from macelib.models.text import encode
from macelib.models.tiny import tiny_pipeline

CONCEPTS = [Concept("ship", "sea"), Concept("frog", "grass")]
NAMES, ANCHORS, KEPT = ["ship", "frog"], ["sea", "grass"], ["dog", "cat", "horse"]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


def last(pipe, texts):
    """Last subject tokens (d, n), found by [EOS]."""
    ids = [pipe.tokenizer(text, padding="max_length")["input_ids"] for text in texts]
    at = [row.index(pipe.tokenizer.eos_token_id, 1) - 1 for row in ids]
    return torch.stack([e[i] for e, i in zip(encode(pipe, texts), at, strict=True)], 1).double()


def layers(pipe, edit, parts="kv"):
    """(W, W') in float64 of each edited layer."""
    W = {f"{n}.weight": w.detach() for n, w in kv_weights(pipe.unet).items()}
    new = dict(edit.change.weights(W))
    assert set(new) == {name for name in W if name.removesuffix(".weight")[-1] in parts}
    return [(W[name].double(), w.double()) for name, w in new.items()]


def test_dp_moves_each_concept_onto_its_own_anchor_and_keeps_the_names(pipe):
    C, A, P0 = (last(pipe, texts) for texts in (NAMES, ANCHORS, KEPT))
    for W, new in layers(pipe, build(pipe, CONCEPTS, "dp", kept=KEPT)):
        assert relative(new @ C, W @ A) < 1e-4 and relative(new @ P0, W @ P0) < 1e-5
    U = torch.linalg.svd(P0, full_matrices=False).U
    for W, new in layers(pipe, build(pipe, CONCEPTS, "dp", {"safe": True}, kept=KEPT)):
        assert relative(new @ C, W @ U @ U.T @ C) < 1e-4
    for W, new in layers(pipe, build(pipe, CONCEPTS, "dp", {"safe": True, "k": 2}, kept=KEPT)):
        assert relative(new @ C, W @ U[:, :2] @ U[:, :2].T @ C) < 1e-4


def test_dp_refuses_targets_that_are_kept_and_says_where_next_to_nothing_is_free(pipe, monkeypatch):
    monkeypatch.setattr("macelib.baselines.dp.tokens", lambda pipe, texts, which: last(pipe, [*NAMES, *KEPT]))
    with pytest.raises(MaceError, match="The targets lie in the span"):
        build(pipe, CONCEPTS, "dp", kept=KEPT)
    monkeypatch.setattr("macelib.baselines.dp.tokens", lambda pipe, texts, which: last(pipe, ["ship", *KEPT]))
    edit = build(pipe, CONCEPTS, "dp", kept=KEPT)
    assert "solved with a ridge" in edit.notes[0] and edit.report["distance"] < 50


def test_rece_in_the_pipeline_is_a_round_of_normal_equations(pipe):
    C, A, P0, rest = (
        torch.cat([*encode(pipe, texts)]).T.double() for texts in (NAMES, ANCHORS, KEPT, [" "])
    )  # all tokens
    one = eye(len(C), dtype=float64)

    def step(C, kept):
        same = 0.1 * kept @ kept.T + 0.1 * one
        return (A @ C.T + same) @ torch.linalg.inv(C @ C.T + same)

    R, H = step(C, P0), sum(w.detach().double().T @ w.detach().double() for w in kv_weights(pipe.unet).values())
    R = R @ step(torch.linalg.inv(R.T @ H @ R + 0.1 * one) @ R.T @ H @ C, rest)
    edit = build(pipe, CONCEPTS, "rece", {"anchor": None, "gamma": 0.1}, kept=KEPT)
    assert all(relative(new, W @ R) < 1e-4 < relative(new, W) for W, new in layers(pipe, edit))


@pytest.mark.parametrize("ipf", [False, True])
def test_speed_minimises_its_objective_beside_what_is_kept(pipe, ipf):
    """Δ = Z Nᵀ with N an explicit basis of {Δ : Δ P = 0, Δ K = 0}, P the columns that IPF keeps of this layer."""
    C, A, P0 = (last(pipe, texts) for texts in (NAMES, ANCHORS, KEPT))
    T, B, K, rho = C @ C.T / 2, A @ C.T / 2, invariant(encode(pipe, [""])[0]), 0.3
    plain = (B - T) @ torch.linalg.inv(eye(len(T), dtype=float64) + T)
    edit = build(pipe, CONCEPTS, "speed", {"anchor": None, "theta": 1e-6, "rho": rho, "aug": 0, "ipf": ipf}, kept=KEPT)
    counts = []
    for W, new in layers(pipe, edit, "v"):
        size = (W @ plain @ P0).norm(dim=0)
        kept = P0[:, size >= size.mean()] if ipf else P0
        counts.append(kept.shape[1])
        U, s, _ = torch.linalg.svd(torch.cat([kept, K], 1))
        N = U[:, int((s > 1e-6 * s[0]).sum()) :]
        rows = torch.cat([(N.T @ C).T / 2**0.5, rho**0.5 * eye(N.shape[1], dtype=float64)])
        targets = torch.cat([(W @ (A - C)).T / 2**0.5, torch.zeros(N.shape[1], len(W), dtype=float64)])
        expected = torch.linalg.lstsq(rows, targets, driver="gels").solution.T @ N.T
        assert relative(new - W, expected) < 1e-3 and ((new - W) @ kept).abs().max() < 1e-5
    assert edit.report["kept_columns"] == min(counts) and edit.report["preserved"] == 3
    assert min(counts) == 3 if not ipf else min(counts) < 3


def test_speed_keeps_names_in_every_layer_beside_their_noisy_copies(pipe):
    C, P0 = last(pipe, NAMES), last(pipe, KEPT)
    edit = build(pipe, CONCEPTS, "speed", {"theta": 1e-6, "aug": 3, "ipf": False}, kept=KEPT)
    assert edit.report["kept_columns"] > 3
    for W, new in layers(pipe, edit, "v"):
        assert ((new - W) @ P0).abs().max() < 1e-5 < 1e-3 < ((new - W) @ C).abs().max()


@pytest.mark.parametrize("anchor", [None, "sea"])
def test_oce_in_the_pipeline_is_the_polar_factor_of_its_objective(pipe, anchor):
    """One text for both concepts spans one direction, though there are two columns of it."""
    C, P0 = last(pipe, NAMES), last(pipe, KEPT)
    A = last(pipe, ANCHORS if anchor is None else [anchor])
    settings = {"anchor": anchor, "expand": False, "keep_anchor": False, "eta": 50.0, "kappa": 2.0}
    edit, K0 = build(pipe, CONCEPTS, "oce", settings, kept=KEPT), token_mean(Request(pipe, tuple(CONCEPTS)))

    def onto(columns):
        return columns @ torch.linalg.pinv(columns)

    for W, new in layers(pipe, edit, "v"):
        G, kept = onto(W @ C), W @ P0
        M = -50 * G @ (eye(len(W), dtype=float64) - onto(W @ A)) + 10 * W @ K0 @ W.T + 2 * kept @ kept.T + 10 * W @ W.T
        U, _, Zh = torch.linalg.svd(M)
        assert relative(new, U @ Zh @ W) < 1e-2 < relative(new, W)


@pytest.mark.parametrize("name", ["uce", "rece", "dp", "speed", "oce", "adavd"])
def test_a_pooled_text_that_stays_is_said_once(name):
    """Of SDXL, whose cross-attention alone these edit."""
    xl = tiny_pipeline("sdxl")
    edit = build(xl, CONCEPTS, name, kept=KEPT)
    assert [note for note in edit.notes if "pooled text, which stays" in note] == edit.notes[:1]


def test_adavd_of_more_names_than_a_layer_has_values_is_said(pipe):
    names = [f"{a} {b}" for a in ("red", "green", "blue", "big", "small") for b in ("ship", "frog", "dog", "cat")]
    assert "20 names are more than the 16 values" in build(pipe, [Concept(n, "sea") for n in names], "adavd").notes[0]
    assert not build(pipe, CONCEPTS, "adavd").notes


def test_rounding_at_the_first_token_is_no_presence(pipe, monkeypatch):
    plain = build(pipe, CONCEPTS, "semantic-surgery")
    found = surgery.calibrate(pipe, CONCEPTS, [["the ship"], ["the frog"]], ["a cat"])

    def noisy(pipe, texts):
        e = states(pipe, texts)
        noise = torch.randn(e[:, 0].shape, generator=torch.Generator().manual_seed(len(texts)))
        return torch.cat([e[:, :1] + 1e-6 * noise[:, None], e[:, 1:]], 1)

    monkeypatch.setattr(surgery, "states", noisy)
    edit, e = build(pipe, CONCEPTS, "semantic-surgery"), encode(pipe, ["a photo of the ship"])
    assert not edit.change.deltas[:, 0].any()
    assert relative(surgery.presence(e, edit.change.deltas), surgery.presence(e, plain.change.deltas)) < 1e-6
    again = surgery.calibrate(pipe, CONCEPTS, [["the ship"], ["the frog"]], ["a cat"])
    assert abs(again[0] - found[0]) < 1e-6


# --- the points that are tried ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide():
    return tiny_pipeline("sd", width=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in tunable() if not method(name).trains and name != "speed"])
def test_no_two_points_of_a_grid_are_the_same_edit(wide, name):
    """Of one concept where no names are told, and of two beside many: as many edits as MACE's grid has points.

    SPEED's theta is in units of a real encoder's states, which these random ones don't have.
    """
    grid = trials(name, Grid.load(data_folder() / "world" / "tuning.yaml"))
    things = ("sea", "grass", "field", "dog", "cat", "man", "art", "horse")
    many = [f"{how} {thing}" for how in ("red", "green", "blue", "big", "small") for thing in things]
    for how, concepts, kept in (("alone", CONCEPTS[:1], ()), ("together", CONCEPTS, many)):
        points = getattr(grid, how)
        keys = [build(wide, concepts, name, point, task=KINDS[how], kept=kept).key for point in points]
        assert len({*keys}) == len(points) == (10 if how == "alone" else 12), how


def test_warm_ups_of_sld_begin_at_different_steps_of_few():
    first = [next(step for step in range(8) if step >= warmup * 8 / 50) for warmup in SLD_GRID["warmup"]]
    assert first == [0, 1, 2]
