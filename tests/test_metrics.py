"""Intervals: Wilson's by its defining equation, the crossed bootstrap by loops and by simulation."""

import doctest

import numpy as np
import pytest

from macelib.errors import MaceError
from macelib.evaluate import metrics
from macelib.evaluate.metrics import Resampling, h_o, interval, wilson
from macelib.evaluate.protocols import CHARACTERS, OBJECTS
from macelib.evaluate.tables import evaluation

Z = 1.959963984540054


def test_examples():
    assert doctest.testmod(metrics).failed == 0


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (0, 20), (20, 20), (1, 20), (13, 40), (399, 400)])
def test_wilson_bounds_are_where_the_score_test_turns(hits, count):
    """Both ends solve |p̂ − p| = z √(p (1 − p) / n), found by bisection."""
    seen = hits / count

    def apart(p):
        return abs(seen - p) - Z * (p * (1 - p) / count) ** 0.5

    def bisect(inside, outside):
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if apart(middle) <= 0 else (inside, middle)
        return inside

    low, high = wilson(hits, count)
    near = min(max(seen, 1e-12), 1 - 1e-12)  # the test never rejects what was seen
    assert low == pytest.approx(bisect(near, 0.0) if hits else 0.0, abs=1e-9)
    assert high == pytest.approx(bisect(near, 1.0) if hits < count else 1.0, abs=1e-9)
    assert low <= seen <= high and high - low > 1e-3


def test_wilson_needs_pictures():
    for hits, count in [(0, 0), (3, 2), (-1, 5)]:
        with pytest.raises(MaceError, match="no proportion"):
            wilson(hits, count)


def test_crossed_bootstrap_picture_by_picture():
    """One row of weights by loops: concepts and draws taken with repetition, synonyms with their concept."""
    rng = np.random.default_rng(0)
    erased, synonym, kept = (rng.integers(0, 2, shape).astype(float) for shape in [(3, 5), (3, 5), (7, 5)])
    taken = Resampling.of([3, 7], 5, times=50, seed=4)
    value, sample = taken.sample([(0, erased), (1, kept), (0, synonym)], h_o)
    assert value == pytest.approx(h_o(erased.mean(), kept.mean(), synonym.mean()))
    for t in (0, 17, 49):
        means = []
        for which, part in [(0, erased), (1, kept), (0, synonym)]:
            counts = np.rint(taken.concepts[which][t] * len(part)).astype(int)
            draws = np.rint(taken.draws[t] * 5).astype(int)
            rows = np.repeat(np.repeat(part, counts, axis=0), draws, axis=1)
            assert rows.shape == part.shape
            means.append(rows.mean())
        assert sample[t] == pytest.approx(h_o(*means))


def test_both_concepts_and_draws_widen_the_interval():
    """Variance over crossed factors: that of the concepts' means and that of the draws' means add up."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(40, 1)), rng.normal(size=(1, 30))
    _, sample = Resampling.of([40], 30, times=20_000).sample([(0, a + b)], lambda x: x)
    assert sample.var() == pytest.approx(a.var() / 40 + b.var() / 30, rel=0.05)
    _, concepts_alone = Resampling.of([40], 1, times=20_000).sample([(0, a)], lambda x: x)
    assert concepts_alone.var() == pytest.approx(a.var() / 40, rel=0.05)


def test_coverage_of_crossed_designs():
    """95 % intervals of 200 simulated studies hold the truth in about 95 % of them (a percentile one a little less)."""
    rng, hits = np.random.default_rng(2), 0
    for _ in range(200):
        table = 0.5 + rng.normal(size=(25, 1)) + rng.normal(size=(1, 25)) + 0.5 * rng.normal(size=(25, 25))
        low, high = interval(Resampling.of([25], 25, times=400).sample([(0, table)], lambda x: x)[1])
        hits += low <= 0.5 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_paired_differences_are_narrower():
    """Two methods on the same hard and easy concepts: their difference is known better than either."""
    rng = np.random.default_rng(3)
    hard = rng.normal(size=(20, 1))
    first = hard + 0.1 * rng.normal(size=(20, 10))
    second = hard - 0.2 + 0.1 * rng.normal(size=(20, 10))
    taken = Resampling.of([20], 10)
    (a, one), (b, two) = (taken.sample([(0, x)], lambda x: x) for x in (first, second))
    low, high = interval(one - two)
    assert low < a - b < high and low > 0 and high - low < 0.2 * (interval(one)[1] - interval(one)[0])


def test_nothing_missed_is_not_certainty():
    """Tables of 20 pictures a role without a single failure: Wilson's interval, and its worst corner for H_o."""
    rows = [
        {"erased": "ship", "model": "erased", "role": role, "name": "cat" if role == "kept" else "ship", "word": role,
         "prompt": role, "seed": i, "group": i % 3, "found": "x", "value": float(role == "kept")}
        for role in OBJECTS.roles for i in range(20)
    ]  # fmt: skip
    result = evaluation(OBJECTS, rows, {})
    numbers = result.metrics.set_index("metric")
    assert tuple(numbers.loc["Acc_e", ["low", "high"]]) == pytest.approx((0, 16.11), abs=0.01)
    assert tuple(numbers.loc["Acc_s", ["low", "high"]]) == pytest.approx((83.89, 100), abs=0.01)
    assert tuple(numbers.loc["H_o", ["low", "value", "high"]]) == pytest.approx((83.89, 100, 100), abs=0.01)
    assert (result.concepts.high - result.concepts.low).min() > 16
    rows[0]["value"] = 1.0  # one ship seen: the draws differ
    again = evaluation(OBJECTS, rows, {}).metrics.set_index("metric")
    assert again.loc["Acc_e", "low"] == 0 < again.loc["Acc_e", "value"] == 5 < again.loc["Acc_e", "high"] == 15
    high = wilson(0, 20)[1]  # the synonyms and the kept do not vary: to H_o, too, they add their intervals
    value, low = h_o(0.05, 1, 0), h_o(0.15, 1, 0)
    down = value - h_o(0.05, 1 - high, 0), value - h_o(0.05, 1, high)
    low = value - np.hypot(value - low, np.hypot(*down))
    assert tuple(again.loc["H_o", ["low", "high"]]) == pytest.approx((100 * low, 100), abs=0.05)


def row_of(erased, model, role, name, seed, value):
    return {"erased": erased, "model": model, "role": role, "name": name, "word": name, "prompt": f"a {name}",
            "seed": seed, "group": seed % 3, "found": name, "value": float(value)}  # fmt: skip


def test_intervals_of_an_evaluation_are_over_concepts_too():
    """Kept names that are always or never recognised: no seed differs, and the interval is that of plain resampling."""
    names, rng = [f"kept {i}" for i in range(12)], np.random.default_rng(0)
    rows = [row_of("ship", "erased", "kept", name, seed, i < 6) for i, name in enumerate(names) for seed in range(3)]
    rows += [row_of("ship", "erased", role, "ship", seed, False) for role in ("erased", "synonym") for seed in range(3)]
    found = evaluation(OBJECTS, rows, {}).metrics.set_index("metric").loc["Acc_s"]
    plain = [100 * (rng.integers(12, size=12) < 6).mean() for _ in range(4000)]
    assert found.value == 50 and np.allclose([found.low, found.high], interval(np.array(plain)), atol=3)


def test_a_mean_over_erasures_is_over_them_and_the_original_s_pictures_count_once():
    things, rows = [f"thing {i}" for i in range(8)], []
    for i, gone in enumerate(things):
        for model in ("original", "erased"):
            shown = model == "original" or i < 4  # half of the erasures do nothing
            some = [("erased", gone, shown), *(("kept", name, True) for name in things if name != gone)]
            rows += [row_of(gone, model, role, name, seed, value) for role, name, value in some for seed in range(3)]
    found = evaluation(CHARACTERS, rows, {})
    of = found.metrics[found.metrics.erased == "mean of 8"].set_index(["model", "metric"])
    value, low, high, images = of.loc[("erased", "Acc_e"), ["value", "low", "high", "images"]]
    rng = np.random.default_rng(0)
    plain = [100 * (rng.integers(8, size=8) < 4).mean() for _ in range(4000)]
    assert value == 50 and np.allclose([low, high], interval(np.array(plain)), atol=3) and images == 24
    assert of.loc[("erased", "Acc_s"), "images"] == 8 * 7 * 3 and of.loc[("original", "Acc_s"), "images"] == 24
    assert of.loc[("original", "Acc_s"), "low"] == pytest.approx(100 * wilson(24, 24)[0])
    assert of.loc[("original", "H_c"), "images"] == 24


def test_what_cannot_vary_is_said():
    for sets, draws, text in [([1, 1], 1, "no interval"), ([], 3, "at least one"), ([3, 0], 3, "at least one")]:
        with pytest.raises(MaceError, match=text):
            Resampling.of(sets, draws)
