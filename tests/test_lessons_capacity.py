"""What one map can move: the measure's own limits, a brute-force solve, and a real encoder whose padding is masked."""

import pandas as pd
import pytest
import torch

from macelib import Concept
from macelib.errors import MaceError
from macelib.lessons import capacity as c
from macelib.models.tiny import tiny_pipeline

NAMES, KEPT = ["ninja", "judge", "red wizard"], ["queen", "polar bear"]


@pytest.fixture(scope="module")
def encoder():
    return c.of_pipeline(tiny_pipeline("sd"), "tiny")


def test_the_identity_leaves_all_and_loses_nothing(encoder):
    rows = c.merged(c.rows_of(encoder, NAMES, "a person", c.TRIED))
    eye = torch.eye(rows.f.shape[1], dtype=torch.float64)
    assert c.left(eye, rows) == 1 and c.lost(eye, rows) == 0 and c.moved(eye, rows) == 0


def test_the_best_map_is_the_least_squares_one(encoder):
    """On the templates that it is solved on, no other linear map leaves less: a brute-force fit of the same rows."""
    rows = c.merged(c.rows_of(encoder, NAMES[:1], "a person", c.FITTED))
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


def test_a_table_is_what_least_squares_gives(encoder):
    """All rows of Eq. 2 stacked and fitted by `lstsq`, measured on rows as they are, for every prior and ridge."""
    fit, tried = (c.merged(c.rows_of(encoder, NAMES[:2], "a person", some)) for some in (c.FITTED, c.TRIED))
    beside, held = (c.merged(c.rows_of(encoder, KEPT, "a person", some)) for some in (c.FITTED, c.TRIED))
    d, found = fit.f.shape[1], []
    for prior in c.PRIORS:
        for ridge in c.RIDGES:
            pull = (ridge * float(fit.f.square().sum()) / d) ** 0.5 * torch.eye(d, dtype=torch.float64)
            kept = (prior * 2 / len(KEPT)) ** 0.5 * beside.every
            rows, targets = torch.cat([fit.f, kept, pull]), torch.cat([fit.g, kept, pull])
            change = torch.linalg.lstsq(rows, targets, driver="gelsd").solution
            gone = (tried.f @ change - tried.g).norm() / (tried.f - tried.g).norm()
            lost = (held.f @ change - held.f).norm() / (held.f - held.g).norm()
            moved = torch.linalg.svdvals(change.T - torch.eye(d, dtype=torch.float64))
            about = int((moved > c.SMALL * moved[0]).sum()), float(torch.linalg.cond(rows) ** 2)
            found.append((float(max(gone, lost)), float(gone), float(lost), prior, ridge, *about))
    row = c.capacity(encoder, NAMES, KEPT, [2]).iloc[0]
    _, gone, lost, prior, ridge, moved, condition = min(found)
    assert (row.prior, row.ridge) == (prior, ridge)
    assert row.left == pytest.approx(gone, rel=1e-6) and row.lost == pytest.approx(lost, rel=1e-6)
    assert row["least sum"] == pytest.approx(min(one[1] + one[2] for one in found), rel=1e-6)
    assert row["rank"] == moved and row.condition == pytest.approx(condition, rel=0.05)


def test_fewer_rows_measure_the_same(encoder):
    rows = c.merged(c.rows_of(encoder, NAMES, "a person", c.TRIED))
    few, R = c._fewer(rows), torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert len(few.f) <= 64 < len(rows.f)
    for measure in (c.left, c.lost, c.moved):
        assert measure(R, few) == pytest.approx(measure(R, rows), rel=1e-9)


def table(name: str, left: float) -> pd.DataFrame:
    rows = [{"encoder": name, "d": 8, "n": n, "n/d": n / 8, "left": left * n, "lost": 0.1} for n in (1, 4)]
    return pd.DataFrame(rows).assign(**{"own, erased": 0.5, "own, kept": left})


def test_what_is_said_of_encoders(monkeypatch):
    monkeypatch.setattr(c, "has_real", lambda: True)
    both = pd.concat([table("tiny", 0.1), table("real", 0.2)])
    told = c.said(both)
    assert "tiny: 0.10 / 0.10 with n = 1 and 0.40 / 0.10 with n = 4; real: 0.20 / 0.10 with n = 1" in told
    assert "left 0.40 (n = 4), lost 0.00 (n = 1), own, erased 0.00 (n = 1) and own, kept 0.10 (n = 1)" in told
    assert "not installed" not in c.said(both) + c.said(table("tiny", 0.1))
    monkeypatch.setattr(c, "has_real", lambda: False)
    assert all("it is not installed" in c.said(some) for some in (both, table("tiny", 0.1)))
    assert [len(ax.lines) for ax in c.figure(both).axes] == [2, 2, 2]


def test_the_table_of_other_towers_stands_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(c, "character_lists", lambda count, family: ([Concept(n, "-") for n in NAMES], KEPT))
    monkeypatch.setattr(c, "world_folder", lambda: tmp_path)
    monkeypatch.setattr(c, "PACKAGE", "no_such_package")
    pipe = tiny_pipeline("sd")
    assert c.compared(pipe, "tiny", [1]).encoder.tolist() == ["tiny"]
    table("width 96", 0.3).to_csv(tmp_path / c.TOWERS, index=False)
    assert c.compared(pipe, "tiny", [1]).encoder.tolist() == ["tiny", *["width 96, recorded"] * 2]
    for other in ({"anchor": "a thing"}, {"beside": 3}):  # the table is of another map
        assert c.compared(pipe, "tiny", [1], **other).encoder.tolist() == ["tiny"]


def test_a_real_encoder_masks_its_padding_and_sees_both_sides_of_a_name():
    if c.importlib.util.find_spec(c.PACKAGE) is None:
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
