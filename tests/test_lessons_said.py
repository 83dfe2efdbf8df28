"""What notebooks say of the run at hand: every sentence follows from the numbers that it is given."""

import doctest

import pandas as pd
import pytest
import torch

from macelib import Concept, EraseConfig, erase, evaluate
from macelib.evaluate import companions
from macelib.lessons import cfis, fusion, interference, refinement, residual, routes, shared
from macelib.lessons import maps as m
from macelib.models.pipelines import kv_weights
from macelib.models.tiny import tiny_pipeline


def test_doctests():
    assert doctest.testmod(shared).failed == doctest.testmod(interference).failed == doctest.testmod(fusion).failed == 0


def test_sentences_are_shown_without_the_empty_ones():
    assert shared.say("One.", "", "Two.").data == "**In this run.** One. Two."
    assert (
        shared.say("One.", head="Recorded.").data == "**Recorded.** One." and shared.say("One.", head="").data == "One."
    )
    assert shared.say("", "").data == "", "a heading of nothing"


def test_rows_are_recorded_without_what_is_not_there():
    table = pd.DataFrame({"a": [1.0, float("nan")], "b": ["x", "y"]})
    assert shared.plain(table) == [{"a": 1.0, "b": "x"}, {"b": "y"}]
    assert shared.plain(table.set_index("b")) == [{"b": "x", "a": 1.0}, {"b": "y"}]


def test_how_sure_the_judge_is():
    sure = {"original": {"ship": 0.9, "cat": 0.8, "dog": 0.6}, "erased": {"ship": 0.1, "cat": 0.7, "dog": 0.6}}
    told = shared.sure_said(sure, "ship", ["cat", "dog"])
    assert "0.90 before and 0.10 after" in told and "0.70 before and 0.65 after" in told and "the cat loses" in told
    assert shared.sure_said(sure, "ship", []).endswith("0.90 before and 0.10 after.")


def test_who_is_recognised():
    before, after = {"ship": 1.0, "boat": 1.0, "cat": 0.5}, {"ship": 0.0, "boat": 0.25, "cat": 0.5}
    told = shared.pictures_said(before, after, {"erased": ["ship"], "near it": ["boat"], "others": ["cat"]})
    assert "erased 100 % before and 0 % after; near it 100 % before and 25 % after" in told
    assert told.endswith("Of the names that should stay, boat (100 to 25 %) loses.")
    said = shared.returned_said({"ship": (0.3, 0.1), "frog": (0.2, 0.25)})
    assert "ship 0.300 to 0.100 and frog 0.200 to 0.250" in said and said.endswith("Not nearer: frog.")
    assert shared.pictures_said(before, before, {"erased": ["ship"], "others": ["cat"]}).endswith("none loses.")


def test_where_a_curve_is_steepest():
    told = shared.steepest_said([0, 0.5, 1], {"a ship": [0, 0.1, 0.5], "a cat": [0, 0.02, 0.03]})
    assert told == "Steepest: “a ship” between 0.5 and 1 (to 0.500 at 1); “a cat” between 0 and 0.5 (to 0.030 at 1)."


def test_the_seed_that_shows_what_the_shares_say():
    class Seer:
        concepts = ("ship", "cat")

        def top1(self, images, among=None):
            return images

    albums = {"original": {"ship": ["ship", "ship", "cat"], "cat": ["ship", "cat", "cat"]}}
    assert shared.typical(Seer(), albums) == 1  # at the others one of the two is not what most seeds give


def test_routes_and_carriers():
    frame = pd.DataFrame({
        "tokens": ["whole prompt"] * 3 + ["without own tokens"] * 3, "name": ["ship", "ship", "frog"] * 2,
        "value": [0.9, 0.8, 0.7, 0.6, 0.2, 0.4],
    })  # fmt: skip
    told = routes.routes_said(frame)
    assert "whole prompt 3 of 3 and without own tokens 1 of 3" in told and told.endswith("ship 1 of 2 and frog 0 of 1.")
    values = {"everything": 0.8, **{f"only {g}": 0.1 for g in residual.GROUPS}}
    values |= {f"without {g}": 0.7 for g in residual.GROUPS} | {"only own": 0.9, "without padding": 0.3}
    told = routes.carriers_said(pd.Series(values).to_frame("at the end"))
    table = pd.Series(dict.fromkeys(values, 0.1)).to_frame("plural")
    assert routes.carriers_said(table) == "*plural* is not drawn by the original (probability 0.10)."
    assert "half of that: own (0.90); the one that is missed most is padding (0.30 without it)" in told
    repeated = pd.Series(values | {"without padding": 0.76}).drop("without own").to_frame("at the end")
    repeated.loc["without own"] = 0.8
    assert routes.carriers_said(repeated.map(lambda v: 0.8 if v == 0.7 else v)).endswith("none is missed.")


def scores(*rows) -> pd.DataFrame:
    columns = [f"{state}, {t}" for state in ("original", "stage 1") for t in ("whole prompt", "without own tokens")]
    return pd.DataFrame([row[1:] for row in rows], index=[row[0] for row in rows], columns=columns)


def test_wordings_that_the_original_does_not_draw_measure_nothing():
    table = scores(("alone", 0.9, 0.4, 0.1, 0.0), ("at the end", 0.7, 0.2, 0.3, 0.1), ("plural", 0.0, 0.0, 0.5, 0.9))
    assert routes.drawn(table).tolist() == ["alone", "at the end"]
    told = routes.patterns_said(table)
    assert "in 2 of 3 wordings" in told and "not in *plural*: these" in told
    assert "the residual score from 0.30 to 0.05, the whole prompt's from 0.80 to 0.20" in told
    assert "Over the others stage 1" in told and "Over these stage 1" in routes.patterns_said(table.iloc[:2])
    assert routes.patterns_said(table.iloc[2:]).endswith("these rows measure nothing.")
    assert routes.agreement(pd.Series([1.0, 2, 3]), pd.Series([0.1, 0.2, 0.9])) == pytest.approx(1)
    assert routes.agreement(pd.Series([1.0, 2]), pd.Series([0.0, 0])) is None


def test_lengths_and_what_is_left_for_stage_2():
    told = routes.failing_said({"stage 1": [], "strong prior": ["plural"]}, None)
    assert "stage 1: none; strong prior: *plural*. Rank correlation" in told and told.endswith("prior has no value.")
    told = routes.lengths_said({"original, after": {"0": 0.5, "2": 0.4, "4": 0.2}, "stage 1, after": {"0": 0.0}})
    assert "original, after: 0.50 with 0 phrases, 0.20 with 4; stage 1, after: 0.00 with 0 phrases, 0.00 with 0" in told
    said = lambda old, new: routes.own_said({"own tokens alone": old}, {"own tokens alone": new})  # noqa: E731
    assert "hardly anything is left" in said(0.9, 0.01) and "leaves 50 % of it: that is left for stage 2" in said(
        0.8, 0.4
    )
    assert "little to take" in said(0.1, 0.0)


def test_attention_through_time_and_layers():
    spot, even = torch.eye(4), torch.full((4, 4), 0.1)
    told = m.time_said([999, 500, 10], torch.stack([0.5 * spot, 0.4 * spot, even]))
    assert (
        "brightest at t = 999 (up to 0.50 of a place's attention per token)" in told
        and "faintest at t = 10 (0.10)" in told
    )
    assert "is 1.00 at the first step, t = 999, and least at t = 10 (0.00)" in told
    told = m.blocks_said({"down 0": spot[None], "mid": spot[None], "up 0": even[None]})
    assert "is down 0 (correlation 1.00), least up 0 (0.00)" in told
    parts = {"[BOS]": torch.tensor([0.2, 0.6]), "own": torch.tensor([0.8, 0.4])}
    told = m.shares_said(parts, [999, 1])
    assert "own 0.60 and [BOS] 0.40" in told and "get 0.80 at t = 999 and 0.40 at t = 1" in told


def test_masks_and_what_the_name_is_told_apart_from():
    told = m.masks_said(torch.tensor([0.8, 0.6, 0.4, 0.2]), ["frog", "frog", "ship", "ship"], [False, True] * 2)
    assert "0.50 on average over 4" in told and "0.60 against a plain colour and 0.40 against a scene" in told
    assert "best frog (0.70), worst ship (0.30)" in told
    told = m.levels_said({m.ALL: [0.5, 0.6], "mid": [0.7, 0.2]}, [100, 500])
    assert "an IoU of 0.60 (t = 500)" in told and "mid, 0.70 (t = 100)" in told
    base = torch.linspace(0.4, 0.9, 12)
    other = base + torch.tensor([0.1, -0.1]).repeat(6)
    table = m.against({"its name": base, "photo": base - 0.3, "another": other, "best": base + 0.1})
    assert table.loc["photo", ["lead", "low", "high"]].tolist() == pytest.approx([0.3] * 3)
    assert table.low["another"] < 0 < table.high["another"] and table.IoU["best"] == pytest.approx(0.75)
    told = m.against_said(table)
    assert (
        "more than photo (+0.30" in told and "not surely more or less than another" in told and "less than best" in told
    )


def test_what_one_map_moves():
    pipe = tiny_pipeline()
    assert refinement.moved_by_group(pipe, 3 * torch.eye(32).double(), "ship") == pytest.approx(
        dict.fromkeys(residual.GROUPS, 2.0)
    )
    told = refinement.by_group_said({"before": 0.1, "own": 0.5, "after": 0.2}, "Amy Adams")
    assert told.startswith("In “a photo of Amy Adams in the snow” R") and "own tokens by 0.50" in told
    assert told.endswith("before 0.10 and after 0.20.")
    groups = {"concept": {"ship": 0.5, "boat": 0.7}, "near it": {"canoe": 0.6}, "others": {"cat": 0.1}}
    told = refinement.moved_said(groups)
    assert refinement.moved_said({**groups, "near it": {}}).endswith("that of ship: none.")
    assert "concept 0.50 (ship) to 0.70 (boat)" in told and told.endswith("that of ship: canoe.")
    assert "in this many of 32 directions: 5 (λ1 = 1) and 2 (λ1 = 9)" in refinement.rank_said(
        {"λ1 = 1": 5, "λ1 = 9": 2}, 32
    )


def test_the_price_of_a_prior_and_of_a_ridge():
    a, b = {"left": [0.1, 0.4], "disturbed": [0.5, 0.1]}, {"left": [0.1, 0.4], "disturbed": [1.0, 0.4]}
    told = refinement.price_said({"λ1": a, "λ0": b})
    assert told.startswith("Where 0.20 of") and "0.22 by λ1 and 0.63 by λ0" in told  # halfway in logarithms
    assert refinement.price_said({"λ1": a, "λ0": {"left": [0.5, 0.9], "disturbed": [1.0, 0.4]}}) == ""
    accuracy = pd.DataFrame({"erased": [100, 0, 0, 80], "near it": [90, 20, 60, 90], "others": [100, 40, 80, 100]})
    told = refinement.lambda_said(accuracy, [1, 10, 100])
    assert "(at most a tenth of its pictures show it still) at λ1 = 1 and 10; of these 10 keeps" in told
    assert "keeps most (near it 60 % and others 80 %), 1 least" in told
    assert told.endswith("At λ1 = 100, 80 % of its pictures show it.")
    one = refinement.lambda_said(accuracy.drop(index=1), [10, 100])
    assert "at λ1 = 10, where of the others are recognised: near it 60 % and others 80 %." in one and "least" not in one
    alone = refinement.lambda_said(accuracy[["erased"]], [1, 10, 100])
    assert "at λ1 = 1 and 10. At λ1 = 100" in alone
    assert refinement.lambda_said(accuracy.assign(erased=100), [1, 10, 100]).startswith("No λ1 takes")
    assert refinement.lambda_said(accuracy.assign(erased=0), [1, 10, 100]).startswith("The original does not draw")


def test_when_a_concept_is_decided_and_samplings_told_apart():
    assert cfis.window_said((630, 770), 200, 400).endswith("looks later, when it is decided.")
    assert cfis.window_said((100, 150), 200, 400).endswith("looks earlier, before it is decided.")
    assert "never shows" in cfis.window_said(None, 200, 400)
    assert cfis.window_said((300, 500), 200, 400).endswith("looks at 100 of these 200 timesteps.")
    assert cfis.losses_said([1.0] * 5 + [0.2, 0.01, 0.2, 0.01, 0.01]).startswith("From step 9 of 10 on")
    assert cfis.losses_said([1.0] * 5 + [0.5] * 5) == "After 10 steps the loss is at 0.50 of its start."
    needed, last = {"cfis": 20, "uniform": 20, "adaptive": None}, {"cfis": 0.0, "uniform": 50.0}
    told = cfis.sampling_said(needed, {"cfis": 75.0, "uniform": 92.0, "adaptive": None}, last, 12)
    assert "cfis after 20 steps 75 % (47 to 91)" in told and "does not tell them apart" in told
    assert "Not halved: adaptive. At the last step they keep cfis 0 % and uniform 50 %." in told
    none = cfis.sampling_said(dict.fromkeys(needed), dict.fromkeys(needed), last, 12)
    assert none == "No sampling halves the concepts. At the last step they keep cfis 0 % and uniform 50 %."
    assert "do not all meet" in cfis.sampling_said(needed, {"cfis": 0.0, "uniform": 100.0}, last, 12)


def test_whose_loras_interfere():
    names = ["frog", "police car", "ship"]
    naive = torch.tensor([[0.0, 0.8, 0.1], [0.1, 0.0, 0.1], [0.2, 0.6, 0.0]])
    closed = 0.1 * naive + torch.diag(torch.tensor([0.03, 0.5, 0.05]))
    told = interference.columns_said({"sum": naive, "closed": closed}, names)
    assert "are those of police car 0.60" in told
    assert "names of several words 0.60 in the sum and 0.06 in the closed, where they deviate by 50 %" in told
    points = [(0.1, 0.5, 0.1, 0.2), (0.2, 0.1, 0.2, 0.1), (0.3, 0.1, 0.3, 0.4), (0.4, 4.0, 0.1, 0.5)]
    table = interference.tail(points)
    assert table.loc["largest"].tolist() == [4.0, 0.3, 0.5] and table.loc["median", "naive"] == pytest.approx(0.3)
    limits = {"naive": ("at", 0.25), "closed": None, "in turn": ("below", 0.1)}
    told = interference.pairs_said(points, table, limits, 0.2)
    assert (
        "largest 4.00, 0.30, 0.50" in told and "than the sum in 50 %" in told and "one after the other in 75 %" in told
    )
    assert told.endswith("stays above 0.2: naive 0.25, closed none and in turn below 0.10.")
    drawn = interference.pairs_figure(points, [(0.1, 0.5, 0.3, 0.2), (0.9, 0.5, 0.4, 0.2)], 0.2).axes[0]
    assert [text.get_text() for text in drawn.texts] == ["below 0.10"]


def test_the_closed_form_misses_least_of_what_is_asked():
    """Eq. 7's value at W* against a sum over the prompts' own rows; any other change has more of it."""
    pipe = tiny_pipeline()
    settings = EraseConfig.from_dict({
        "prior": {"use": False}, "images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 3, "lr": 0.01},
    })  # fmt: skip
    erasure = erase(pipe, [Concept("ship", "sea"), Concept("frog", "grass")], settings)
    P = torch.randn(32, 32, generator=torch.Generator().manual_seed(1)).double()
    erasure = erasure.with_prior(P @ P.T, "random")
    W, layers = kv_weights(pipe.unet), list(erasure.layers)
    R, lambda2, ridge = erasure.refinement.R, erasure.prior_weight("fuse.lambda2"), erasure.ridge("fuse.lambda0")

    def asked(new) -> float:
        total = 0.0
        for at, name in enumerate(layers):
            w = W[name].detach().double()
            total += ridge * (new[name] - w @ R).square().sum() + lambda2 * ((new[name] - w) @ P).square().sum()
            for part in erasure.parts:
                b = part.B.double().split(list(erasure.layers.values()))[at]
                gap = new[name] - w @ R - b @ part.D[at].double()
                total += part.weight * ((gap @ part.statistics.C()) * gap).sum()
        return float(total)

    still = asked({name: W[name].detach().double() @ R for name in layers})
    found = {}
    for method in fusion.METHODS:
        fused = fusion.with_method(erasure, method)
        new = {name: w.double() for name, w in fused.weights({n: w.detach().double() for n, w in W.items()})}
        found[method] = interference.missed(pipe, fused)
        assert found[method] == pytest.approx(asked(new) / still, rel=1e-3)
    assert found["closed"] < found["naive"] and found["closed"] < 1


def test_what_many_concepts_do_to_kept_names():
    row = {"Acc_e": 0.0, "Acc_s": 0.5, "others": 0.25}
    rows = [{"count": 0, "method": "original", **dict.fromkeys(row, 1.0)}]
    rows += [{"count": 2, "method": method, **row} for method in fusion.METHODS]
    rows[2]["Acc_s"] = 0.75
    told = fusion.sweep_said(rows)
    assert "with 2 concepts erased ones 0 % (naive), 0 % (closed) and 0 % (in turn), kept ones 50 % (naive)" in told
    assert "50 % (naive), 75 % (closed) and 50 % (in turn)" in told and told.endswith("kept ones 100 %, others 100 %.")
    fewer = fusion.sweep_said([{k: v for k, v in row.items() if k != "others"} for row in rows])
    assert "others" not in fewer and fewer.endswith("By the original: kept ones 100 %.")
    table = pd.DataFrame({
        "nearest erased": ["pizza", "fire engine"], "similarity": [0.3, 0.4], "original": [100.0, 100.0],
        "closed": [0.0, 100.0],
    }, index=["hot dog", "racing car"])  # fmt: skip
    told = fusion.kept_said(table, ["dog", "pizza", "fire engine"])
    assert "wholly or in part: hot dog (0 %, similarity 0.30). The most similar one, racing car (0.40" in told
    assert told.endswith("share a word with an erased one: hot dog (0 %; dog).")
    found = pd.DataFrame({"frog": [100.0, 0, 100], "kept": [100.0, 90, 80]}, ["original", "all erased", "without"])
    told = fusion.back_said(found, "frog")
    assert "100 % (original), 0 % (all erased) and 100 % (without)" in told and told.endswith("kept 90 to 80 %.")


def test_pairs_and_recorded_studies():
    rows = [("ship", order, metric, value, value - 5, value + 5, 20) for order, metric, value in (
        ("both orders", "seen", 9.0), ("erased first", "seen", 10.0), ("companion first", "seen", 20.0),
        ("both orders", "lost", 9.0), ("erased first", "lost", 30.0), ("companion first", "lost", 40.0),
    )]  # fmt: skip
    metrics = pd.DataFrame(rows, columns=companions.METRICS)
    told = evaluate.Pairs(pd.DataFrame(), metrics, {}).verdict()
    assert "still seen in 10 % (5 to 15; erased first) and 20 % (15 to 25; companion first)" in told
    assert told.endswith("lost in 30 % (25 to 35; erased first) and 40 % (35 to 45; companion first).")
    empty = evaluate.Pairs(pd.DataFrame(), pd.DataFrame(columns=companions.METRICS), {})
    assert "not measured" in empty.verdict() and repr(empty) == str(empty), "a notebook's text is its table"
    assert evaluate.Evaluation.__repr__ is evaluate.Evaluation.__str__


def test_a_recorded_ablation_in_a_sentence(tmp_path, monkeypatch):
    folder = tmp_path / "studies" / "ablation"
    folder.mkdir(parents=True)
    rows = [(name, "erased", "H_o", value, low, high, 9) for name, value, low, high in (
        ("stage 1 alone", 90.0, 85, 95), ("stage 2 alone", 60.0, 50, 70), ("all", 88.0, 84, 92),
    )]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["erased", "model", "metric", "value", "low", "high", "images"])
    frame.to_csv(folder / "metrics.csv", index=False)
    (folder / "settings.json").write_text(
        '{"config": [{"concepts": [{"name": "ship"}]}], "steps": 8, "guidance": 3, "classifier": "a", "among": "known"}'
    )
    monkeypatch.setattr("macelib.evaluate.record.data_folder", lambda: tmp_path)
    assert evaluate.recorded_verdict("ablation") == (
        "Erased: ship. By H_o: stage 1 alone 90.0; all 88.0; stage 2 alone 60.0. Not told apart from the first, as "
        "their intervals meet: all."
    )
