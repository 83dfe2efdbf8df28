"""Numbers of a comparison: relations of names, and intervals against plain resampling, by loops and by hand."""

import numpy as np
import pandas as pd
import pytest

from macelib.compare import planned
from macelib.compare.counts import Counts, relation
from macelib.compare.rows import numbers, resampling
from macelib.evaluate import metrics
from macelib.evaluate.numbers import Cells, Number, combined, ratio, row
from macelib.evaluate.tasks import task


def test_relations_of_names():
    found = planned(task("mini-shared-words"))
    assert [c.name for c in found.erasures[0]] == ["cat"]
    bear = next(i for i, concepts in enumerate(found.erasures) if concepts[0].name == "bear")
    assert relation(found, bear, "polar bear") == "shares a word"
    objects = planned(task("mini-objects"))
    assert relation(objects, 0, "ship") == "same group" and relation(objects, 0, "frog") == "unrelated"


def cells(which, values):
    return Cells(which, np.asarray(values, float), np.ones_like(values, dtype=float))


def test_intervals_against_plain_resampling():
    rng = np.random.default_rng(3)
    erased, kept = (rng.random((12, 6)) < 0.3).astype(float), (rng.random((9, 6)) < 0.8).astype(float)
    sums = Counts({"Acc_e": cells(0, erased), "Acc_s": cells(1, kept)}, (12, 9), False)
    found = planned(task("mini-characters"), 1)
    of = numbers(found, sums, resampling(sums, 6))
    plain = []
    for _ in range(4000):
        seeds = rng.integers(6, size=6)
        e, s = erased[rng.integers(12, size=12)][:, seeds].mean(), kept[rng.integers(9, size=9)][:, seeds].mean()
        plain.append((e, s, metrics.h_c(e, s)))
    for metric, sample in zip(("Acc_e", "Acc_s", "H_c"), np.array(plain).T, strict=True):
        assert np.allclose(of[metric].interval, metrics.interval(sample), atol=0.02), metric
    assert of["H_c"].value == pytest.approx(metrics.h_c(erased.mean(), kept.mean()))


def test_the_mean_of_erasures_is_resampled_with_them():
    rng = np.random.default_rng(4)
    parts = [(rng.random((10, 5)) < p).astype(float) for p in (0.2, 0.9, 0.4)]
    sums = Counts({m: cells(0, p) for m, p in zip(("Acc_e", "Acc_s", "Acc_g"), parts, strict=True)}, (10,), True)
    taken = resampling(sums, 5)
    of = numbers(planned(task("mini-objects")), sums, taken)["H_o"]
    assert of.value == pytest.approx(np.mean([metrics.h_o(*(p[i].mean() for p in parts)) for i in range(10)]))
    for t in range(0, 2000, 400):  # one resample at a time, by loops
        own = [metrics.h_o(*(float(taken.draws[t] @ p[i]) for p in parts)) for i in range(10)]
        assert of.sample[t] == pytest.approx(float(taken.concepts[0][t] @ own))


def test_trainings_are_resampled_beside_the_drawing_seeds():
    """One resample at a time: trainings and seeds are taken from lists, with all that belongs to them."""
    rng = np.random.default_rng(6)
    table = (rng.random((7, 3, 4)) < 0.4).astype(float)  # (concepts, trainings, seeds)
    sums = Counts({"Acc_e": cells(0, table.reshape(7, 12))}, (7,), False, trainings=3)
    taken = resampling(sums, 4)
    of = numbers(planned(task("mini-characters"), 1), sums, taken)["Acc_e"]
    assert taken.draws.shape == (2000, 12) and np.allclose(taken.draws.sum(1), 1)
    plain = [table[rng.integers(7, size=7)][:, rng.integers(3, size=3)][:, :, rng.integers(4, size=4)].mean()
             for _ in range(4000)]  # fmt: skip
    assert np.allclose(of.interval, metrics.interval(np.array(plain)), atol=0.03)
    assert np.array_equal(resampling(Counts({}, (7,), False), 4).concepts[0], taken.concepts[0])  # paired with others


def test_pairs_are_resampled_by_what_goes_and_by_companions():
    """Against plain resampling of all three; things differ more than companions and seeds do."""
    rng = np.random.default_rng(7)
    table = np.zeros((5, 6, 4))  # (things, companions, seeds)
    table[:2] = 1
    table[2] = rng.random((6, 4)) < 0.5
    sums = Counts({"Acc_e": cells(0, table.reshape(30, 4))}, (5, 6), False, crossed=True)
    of = numbers(planned(task("mini-two-things")), sums, resampling(sums, 4))["Acc_e"]
    plain = [table[rng.integers(5, size=5)][:, rng.integers(6, size=6)][:, :, rng.integers(4, size=4)].mean()
             for _ in range(4000)]  # fmt: skip
    assert of.concepts == 5 and of.value == pytest.approx(table.mean())
    assert np.allclose(of.interval, metrics.interval(np.array(plain)), atol=0.03) and np.ptp(of.interval) > 0.6


def test_nothing_that_varies_has_wilson_s_interval():
    sums = Counts({"Acc_e": cells(0, np.zeros((10, 2))), "Acc_s": cells(1, np.ones((5, 2)))}, (10, 5), False)
    of = numbers(planned(task("mini-characters"), 1), sums, resampling(sums, 2))
    assert of["Acc_e"].interval == pytest.approx(metrics.wilson(0, 20))
    low, high = of["H_c"].interval
    assert high == 1 and low == pytest.approx(metrics.h_c(metrics.wilson(0, 20)[1], metrics.wilson(10, 10)[0]))
    same = of["H_c"].minus(of["H_c"])
    assert same.value == 0 and same.interval[0] == pytest.approx(low - 1) and same.interval[1] == pytest.approx(1 - low)


def test_what_does_not_vary_is_not_certain_in_a_difference():
    """0 of 30 beside 15 of 30: the bootstrap knows of the second alone, Wilson's of the first reaches to 11 %."""
    some = np.tile([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], (5, 1))
    some[:3], some[7:] = 1, 0
    taken = resampling(Counts({}, (10,), False), 3)
    none, half = (ratio(hits, np.ones((10, 3)), taken) for hits in (np.zeros((10, 3)), some))
    upper, (low, high) = metrics.wilson(0, 30)[1], half.interval
    v = half.value
    assert half.minus(none).interval == pytest.approx((v - np.hypot(v - low, upper), high))
    assert none.minus(half).interval == pytest.approx((-high, -v + np.hypot(v - low, upper)))
    assert half.minus(none).minus(half).still[0] == pytest.approx(upper), "it stays with what is made of it"
    exact = Number(0.0, np.zeros(2000), (0.0, 0.0), 30, 10, proportion=False)
    assert half.minus(exact).interval == pytest.approx((low, high)), "what has no interval of its own adds none"


@pytest.mark.parametrize("each", [False, True])
def test_what_does_not_vary_is_not_certain_in_a_combined_metric(each):
    rng = np.random.default_rng(8)
    kept, found = (rng.random((10, 3)) < 0.8).astype(float), planned(task("mini-characters"), 1)
    sums = Counts({"Acc_e": cells(0, np.zeros((10, 3))), "Acc_s": cells(0, kept)}, (10,), each)
    of = numbers(found, sums, resampling(sums, 3))
    h, (low, high), (_, upper) = of["H_c"], metrics.interval(of["H_c"].sample), metrics.wilson(0, 30)
    down = metrics.h_c(0, kept.mean()) - metrics.h_c(upper, kept.mean())
    assert h.varies and down > 0.03 and row({}, "H_c", h, 3)["over"].endswith("seeds; Wilson of what does not vary")
    assert h.interval == pytest.approx((h.value - np.hypot(h.value - low, down), high))
    sums = Counts({"Acc_e": cells(0, 1 - kept), "Acc_s": cells(0, np.full((10, 3), 0.999))}, (10,), each)
    assert 0 <= (ends := numbers(found, sums, resampling(sums, 3))["H_c"].interval)[0] < ends[1] <= 1


def test_differences_are_paired():
    rng = np.random.default_rng(5)
    hard = (rng.random((40, 3)) < np.linspace(0, 1, 40)[:, None]).astype(float)
    better = np.maximum(hard, rng.random((40, 3)) < 0.2)
    taken = resampling(Counts({}, (40,), False), 3)
    one, two = (
        numbers(planned(task("mini-characters"), 1), Counts({"Acc_e": cells(0, v)}, (40,), False), taken)["Acc_e"]
        for v in (hard, better)
    )
    paired, loose = two.minus(one).interval, [two.interval[0] - one.interval[1], two.interval[1] - one.interval[0]]
    assert two.minus(one).value == pytest.approx(better.mean() - hard.mean())
    assert np.ptp(paired) < 0.5 * np.ptp(loose) and paired[0] > 0
    alone = Number(0.5, None, (0.2, 0.8), 4, 1)
    assert alone.minus(Number(0.4, None, (0.4, 0.4), 4, 1)).interval == pytest.approx((-0.2, 0.4))


def test_pictures_count_once_and_trainings_of_one_prompt_and_seed_are_no_new_ones():
    """Kept names of ten erasures: the original drew each once; three trainings drew three, as good as one to Wilson."""

    def of(model, trainings):
        lines = [
            {"key": i, "training": t, "model": model(i), "prompt": f"a {name}", "seed": seed, "value": 1.0}
            for i in range(10) for t in range(trainings) for name in range(10) if name != i for seed in range(2)
        ]  # fmt: skip
        return Cells.of(pd.DataFrame(lines), range(10), range(2), trainings=trainings)

    original, trained = of(lambda i: 0, 1), of(lambda i: i, 3)
    assert original.counts.sum() == 180 and (original.n, original.independent) == (20, 20)
    assert (trained.n, trained.independent) == (3 * 180, 180) and trained.counts.shape == (10, 6)
    assert original.mean(None).ends == metrics.wilson(20, 20) and original.mean(None).n == 20
    assert trained.mean(None).ends == metrics.wilson(180, 180)
    assert combined(metrics.h_c, [original, original], None).n == 20, "pictures of two metrics are the same"
