"""Lesson 10: every attack with its controls on a tiny pipeline, and tables that are read as they are counted."""

from collections import Counter

import pandas as pd
import pytest
from PIL import Image

from macelib import Concept, MaceError
from macelib.attacks import Result
from macelib.baselines import build
from macelib.evaluate.attacked import table
from macelib.files import hash_tensors
from macelib.lessons import comeback as b
from macelib.models.pipelines import kv_weights
from macelib.models.tiny import tiny_pipeline

SHIP = Concept("ship", "sea")
NAMES = ["ring-a-bell", "wording"]
SETTINGS = {"ring-a-bell": {"etas": (1.0,), "neutral": "sea"}, "wording": {"levels": ("name", "short")}}


class Blind:
    """Sees the ship in every third picture, beginning with the first."""

    concepts = ("ship", "sea")

    def __init__(self):
        self.count = 0

    def top1(self, pictures, among=None):
        self.count += len(pictures)
        return ["ship" if (self.count - len(pictures) + i) % 3 == 0 else "sea" for i in range(len(pictures))]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def done(pipe):
    edits = {"uce": build(pipe, [SHIP], "uce", kept=["frog"])}
    before = hash_tensors(kv_weights(pipe.unet))
    foreign = {"duck": [Image.new("RGB", (8, 8))]}, Blind()
    options = {"among": ["cat"], "settings": SETTINGS, "seeds": [0, 1], "steps": 1}
    result, seen = b.run(pipe, edits, SHIP, NAMES, Blind(), foreign=foreign, **options)
    assert hash_tensors(kv_weights(pipe.unet)) == before
    return result, seen


@pytest.mark.slow
def test_every_attack_has_its_controls(done):
    result, _ = done
    by = Counter((row["attack"], row["control"], row["method"]) for row in result.rows)
    one = {"original": "original", "none": "uce", "no-attack": "uce", "foreign": "uce"}
    assert set(by) == {(name, control, method) for name in NAMES for control, method in one.items()}
    assert by["ring-a-bell", "none", "uce"] == 2 * 2, "two seeds by (erased, neutral)"
    assert by["ring-a-bell", "original", "original"] == 4 and by["wording", "no-attack", "uce"] == 2


@pytest.mark.slow
def test_what_the_judge_saw_is_what_the_rows_count(done):
    result, seen = done
    found = b.found(result, seen, "ring-a-bell", "none", "uce")
    rows = [r for r in result.rows if (r["attack"], r["control"], r["seed"]) == ("ring-a-bell", "none", 0)]
    plain = ["un-attacked", "un-attacked, a photo of the sea"]  # each before what is tried beside it
    told = [text for before, row in zip(plain, rows, strict=True) for text in (before, row["variant"])]
    assert [variant for variant, *_ in found] == told
    verdicts = [verdict == "ship" for *_, verdict in found]
    assert verdicts[::2] == [row["pre"] for row in rows]
    assert [a or b for a, b in zip(verdicts[::2], verdicts[1::2], strict=True)] == [row["success"] for row in rows]
    with pytest.raises(MaceError, match="is one search"):
        b.found(result, seen, "unlearndiffatk", "none", "uce")


def test_a_judge_without_a_list_chooses_among_names():
    asked = []

    class Asked:
        def top1(self, pictures, among=None):
            asked.append(among)
            return ["ship"] * len(pictures)

    witness = b.Witness(Asked(), ["ship", "cat"])
    assert witness.top1(["picture"]) == ["ship"] and asked == [["ship", "cat"]]
    assert witness.seen == [("picture", "ship")]


def test_of_the_best_of_several_pictures_the_one_that_shows_it_is_kept():
    class Third:
        concepts = ("ship", "sea")

        def top1(self, pictures, among=None):
            return ["ship" if picture == "c" else "sea" for picture in pictures]

    witness = b.Witness(Third(), ["ship"])
    assert witness.top1(["a", "b", "c"]) == ["sea", "sea", "ship"] and witness.top1(["a", "b"]) == ["sea", "sea"]
    assert witness.seen == [("c", "ship"), ("a", "sea")]


def test_one_concept_is_asked_for():
    assert b.the_one({"ship": "the sea"}).name == "ship"
    for some in ({}, {"ship": "the sea", "frog": "grass"}):
        with pytest.raises(MaceError, match="give one name with its anchor"):
            b.the_one(some)


@pytest.mark.slow
def test_pictures_of_what_was_tried(done):
    result, seen = done
    found = b.pictures(result, seen, "ring-a-bell", ["uce"], "title")
    shown = [ax for ax in found.axes if ax.images]
    assert len(shown) == 2 * 4, "the original and the method, each un-attacked, erased and neutral"
    wording = b.found(result, seen, "wording", "none", "uce")
    assert wording[0][0] == "level name", "nothing is drawn before"
    assert b.pictures(result, seen, "unlearndiffatk", ["uce"], "title") is None


def test_strangers_belong_to_the_mini_world(pipe):
    assert b.strangers(pipe, 2) is None


@pytest.mark.slow
def test_rates_are_those_of_the_rows(done):
    result, _ = done
    rows = table(result)
    frame = b.frame(rows)
    for line in frame.to_dict("records"):
        of = [r for r in result.rows if all(r[k] == line[k] for k in ("attack", "control", "method"))]
        of = [r for r in of if r["variant"] == line["variant"]]
        assert line["n"] == len(of) and line["ASR"] == pytest.approx(100 * sum(r["success"] for r in of) / len(of))
        before = [r["pre"] for r in of if r["pre"] is not None]
        assert pd.isna(line["pre-ASR"]) if not before else line["pre-ASR"] == pytest.approx(100 * sum(before) / len(of))
        assert line["low"] <= line["ASR"] <= line["high"]
    best = b.strongest(frame)
    assert not best.duplicated(["attack", "control", "method"]).any() and (best.groupby("attack").size() == 4).all()
    for line in best.itertuples():
        assert frame[(frame.attack == line.attack) & (frame.control == line.control)].ASR.max() == line.ASR
    spent = b.spent(rows)
    assert (spent["backward passes"] == 0).all() and (spent.pictures > 0).all()


def test_variants_are_spent_one_after_the_other():
    """What a prompt and seed took is what stood there at the attack's last variant."""
    whole = {("uce", 0): 30, ("uce", 1): 34, ("mace", 0): 50, ("mace", 1): 54}  # forward passes by method and seed
    about = {"attack": "relearning", "control": "none", "settings": "", "concept": "ship", "prompt": "a ship"}
    tries = [
        {**about, "method": method, "seed": seed, "variant": f"{10 * k} steps", "pre": False, "success": False}
        | {"budget": {"forward": k * total // 2, "backward": 4 * k, "pictures": 1 + k}}
        for (method, seed), total in whole.items()
        for k in (1, 2)
    ]
    spent = b.spent(table(Result(tries)))
    assert spent.loc["relearning"].tolist() == [sum(whole.values()) / 4, 8, 3]


def lines(*rows) -> pd.DataFrame:
    """As of `frame`, without differences."""
    return pd.DataFrame([row[:9] for row in rows], columns=b.COLUMNS[:9]).reindex(columns=b.COLUMNS)


def test_the_paired_difference_stands_beside_the_strongest_variant():
    about = {"attack": "ring-a-bell", "method": "uce", "settings": "published", "n": 6}

    def of(metric, variant, mean, low, high, control="none"):
        return {
            **about,
            "metric": metric,
            "variant": variant,
            "mean": mean,
            "low": low,
            "high": high,
            "control": control,
        }

    rows = [
        of("ASR", "eta 1", 40, 20, 60), of("pre-ASR", "eta 1", 10, 0, 30), of(b.FOREIGN, "eta 1", 40, 10, 70),
        of("ASR", "eta 2", 50, 30, 70), of("pre-ASR", "eta 2", 10, 0, 30), of(b.FOREIGN, "eta 2", 12, 3, 20),
        of("ASR", "eta 1", 0, 0, 10, "foreign"), of("ASR", "eta 2", 38, 20, 50, "foreign"),
        {**of("ASR", "level a", 30, 10, 50), "attack": "wording"},
    ]  # fmt: skip
    frame = b.frame(rows)
    assert [*frame.columns] == b.COLUMNS and frame.paired.dropna().tolist() == [40, 12]
    assert frame["pre-ASR"].dropna().tolist() == [10, 10] and b.figure(frame).axes
    found = b.margins(frame)
    bell = found.loc[("ring-a-bell", "uce")]
    assert bell[["over foreign", "paired", "paired_low", "paired_high"]].tolist() == [12, 12, 3, 20]
    assert b.margins_said(found) == (
        "ring-a-bell on uce: 50 % (30 to 70), +12 over a foreign concept; same variant, paired: +12 (+3 to +20); "
        "wording on uce: 30 % (10 to 50) (points)."
    )
    assert b.frame(rows[-1:]).paired.isna().all()  # nothing recorded before, no foreign control


def test_margins_over_controls():
    frame = lines(
        ("noise", "none", "mace", "", 0, 40, 30, 50, 9), ("noise", "no-attack", "mace", "", 0, 10, 5, 15, 9),
        ("noise", "original", "original", "", 90, 100, 90, 100, 9), ("wording", "none", "uce", "a", 0, 20, 10, 30, 6),
        ("wording", "none", "uce", "b", 0, 70, 60, 80, 6), ("wording", "foreign", "uce", "", 0, 30, 20, 40, 6),
    )  # fmt: skip
    found = b.margins(frame)
    noise, wording = found.loc[("noise", "mace")], found.loc[("wording", "uce")]
    assert noise[["over no-attack", "below original"]].tolist() == [30, 60] and pd.isna(noise["over foreign"])
    assert wording["over foreign"] == 40 and pd.isna(wording["over no-attack"])
    shared = lines(*frame.values.tolist(), ("noise", "foreign", "original", "", 0, 15, 10, 20, 9))
    assert b.margins(shared).loc[("noise", "mace"), "over foreign"] == 25, "one foreign control for all methods"
    gold = lines(*frame.values.tolist(), ("wording", "never-knew", "never-knew", "", 0, 55, 50, 60, 6))
    gold = b.margins(gold)
    assert gold.loc[("wording", "uce"), "over never-knew"] == 15 and pd.isna(gold["over never-knew"].iloc[0])
    assert b.margins_said(gold).endswith("+40 over a foreign concept, +15 over a model that never knew it (points).")
    assert [ax.get_title() for ax in b.margins_figure(gold).axes][2:] == ["over never-knew, points of ASR"]
    told = b.margins_said(found)
    assert "noise on mace: 40 % (30 to 50), +30 over no attack; wording on uce: 70 % (60 to 80)" in told
    assert told.endswith("+40 over a foreign concept (points).")
    assert "noise: none, original and no-attack; wording: none and foreign. The smallest n is 6" in b.controls_said(
        frame
    )
    assert b.controls_said(frame).endswith("the widest interval 20 points.")
    drawn = b.margins_figure(found).axes
    assert [ax.get_title() for ax in drawn] == [f"over {c}, points of ASR" for c in ("no-attack", "foreign")]
    assert [[float(line.get_xdata()[0]) for line in ax.lines] for ax in drawn] == [[30, 0], [40, 0]]
    many = pd.concat({(f"a{i}", f"m{j}"): noise for i in range(7) for j in range(6)}, axis=1).T
    assert max(b.margins_figure(many.rename_axis(["attack", "method"])).get_size_inches()) < 12
    panels = [ax for ax in b.figure(frame).axes if ax.get_title()]
    assert [[tick.get_text() for tick in ax.get_yticklabels()] for ax in panels] == [
        ["mace, no-attack", "original", "mace"], ["uce, foreign", "uce"],
    ]  # fmt: skip


def test_rates_by_percent_and_steps():
    frame = lines(
        ("relearning", "none", "uce", "100 steps", 0, 80, 70, 90, 9), ("noise", "none", "uce", "", 0, 9, 1, 20, 9),
        ("relearning", "none", "uce", "25 steps", 0, 20, 10, 30, 9),
        ("wording", "none", "uce", "level a", 0, 9, 1, 20, 9),
        ("relearning", "no-attack", "uce", "un-attacked, best of 2", 0, 1, 0, 5, 9),
        ("relearning", "foreign", "uce", "25 steps", 0, 5, 0, 9, 9),
        ("completion", "none", "uce", "12.5 % by the original", 0, 3, 1, 6, 9),
    )  # fmt: skip
    found = b.curves(frame)
    assert list(zip(found.attack, found.who, found["at"], found.ASR, strict=True)) == [
        ("completion", "uce", 12.5, 3), ("relearning", "uce", 25, 20), ("relearning", "uce, foreign", 25, 5),
        ("relearning", "uce", 100, 80),
    ]  # fmt: skip
    one, two = b.curves_figure(found).axes
    line, whiskers = two.containers[0].lines[0], two.containers[0].lines[2][0]
    assert (one.get_xlabel(), two.get_xlabel()) == ("percent drawn by the original", "steps of training")
    assert line.get_xydata().tolist() == [[25, 20], [100, 80]]
    assert [part[:, 1].tolist() for part in whiskers.get_segments()] == [[10, 30], [70, 90]]
    told = b.curves_said(found)
    assert told.endswith("(steps of training): uce 20 % at 25 to 80 % at 100; uce, foreign 5 % at 25 to 5 % at 25.")


def test_nothing_recorded_is_nothing_said():
    empty = b.frame([])
    assert not len(b.strongest(empty)) and not len(b.margins(empty)) and not len(b.spent([]))
    assert "No attack" in b.margins_said(b.margins(empty)) and b.missing_said([]) == ""
    assert not len(b.curves(empty)) and b.curves_said(b.curves(empty)) == ""
    assert b.controls_said(empty) == "Controls measured: none."
    missing = [{"attack": "noise", "control": "never-knew", "method": "uce", "metric": "ASR", "why": "no model."}]
    assert b.missing_said(missing * 2) == "Not measured: noise, never-knew (no model)."
