"""Orders of methods beside published ones: τ against SciPy, blocks that have too few methods, pairs that disagree."""

import doctest
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau
from test_report import line

from macelib.baselines import methods
from macelib.compare import agreement
from macelib.compare import published as module
from macelib.compare.published import (
    NAMES,
    NOTHING,
    chance,
    keep_samples,
    kendall,
    markdown,
    read_published,
    samples,
)
from macelib.errors import MaceError
from macelib.evaluate import results

PUBLISHED = """# a comment
source,task,method,h
A,objects,MACE,92
A,objects,UCE,85
A,objects,ESD-x,77
A,objects,Unheard of,99
A,objects,original,
B,objects,MACE,90
B,objects,UCE,80
"""
H = {"mace": 80.0, "uce": 90.0, "esd-x": 20.0}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "published.csv").write_text(PUBLISHED)
    rows = [line(method, "published", "H_o", h) for method, h in H.items()]
    rows += [line(method, "published", "Acc_e", 50.0) for method in H] + [line("mace", "tuned", "H_o", 99.0, 0.5)]
    path = results.write(tmp_path / "objects.json", "mace compare", {}, rows, [])
    noise = np.random.default_rng(0).normal(0, 6, (500, 3))
    columns = [f"{method} (published)" for method in H]
    keep_samples(path, pd.DataFrame(np.array([*H.values()]) + noise, columns=columns))
    return tmp_path


def test_doctests():
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_tau_and_its_chance_are_scipys():
    generator = np.random.default_rng(1)
    for n in (3, 4, 5, 6):
        a, b = generator.permutation(n), generator.permutation(n)
        exact = kendalltau(a, b, method="exact", alternative="greater")
        assert float(kendall(a, b)) == pytest.approx(exact.statistic) and chance(a, b) == pytest.approx(exact.pvalue)


@pytest.mark.parametrize(
    ("a", "b", "p"),
    [
        ([1, 2, 3], [1, 1, 2], 1 / 3), ([1, 2, 3, 4], [0, 0, 60, 90], 1 / 12),
        ([1, 2, 2, 3], [4, 1, 4, 5], None), ([3, 3, 1, 2, 5], [0, 7, 0, 0, 7], None), ([1, 2, 3], [5, 5, 5], 1),
    ],
)  # fmt: skip
def test_the_chance_is_exact_with_ties(a, b, p):
    """By enumeration: concordant less discordant pairs of every order of the values themselves."""

    def balance(order):
        return sum(np.sign((a[i] - a[j]) * (order[i] - order[j])) for i in range(len(a)) for j in range(i))

    counted = [balance(order) >= balance(b) for order in permutations(b)]
    assert chance(a, b) == pytest.approx(np.mean(counted))
    assert p is None or chance(a, b) == pytest.approx(p)


def test_a_block_that_has_three_methods_in_common_is_told_with_the_pairs_apart(folder):
    table = agreement(folder)
    assert table[["source", "task", "settings"]].to_numpy().tolist() == [["A", "objects", "published"]]
    row = table.iloc[0]
    assert (row.methods, row.agree, row.pairs, row.apart) == (3, 2, 3, "mace and uce") and row.tied == ""
    assert row.tau == pytest.approx(1 / 3) and row.p == pytest.approx(0.5)
    kept = samples(folder / "objects.json").to_numpy()
    share = (kept[:, 0] > kept[:, 1]).mean()  # samples in which all three are in their order
    assert 0.025 < share < 0.3 and row.low == pytest.approx(1 / 3) and row.high == pytest.approx(1.0)


def test_equal_methods_are_not_the_other_way_round(folder):
    rows = [line(method, "published", "H_o", h) for method, h in (H | {"uce": 20.0}).items()]
    kept = samples(folder / "objects.json")
    keep_samples(results.write(folder / "objects.json", "mace compare", {}, rows, []), kept)
    row = agreement(folder).iloc[0]
    assert (row.agree, row.pairs, row.apart, row.tied) == (2, 3, "", "uce and esd-x")
    assert row.tau == pytest.approx(2 / 3) and row.p == pytest.approx(1 / 3)


def test_samples_of_other_rows_are_refused(folder):
    rows = [line(method, "published", "H_o", h + 1) for method, h in H.items()]
    results.write(folder / "objects.json", "mace compare", {}, rows, [])
    with pytest.raises(MaceError, match=r"objects\.samples\.csv holds samples of other rows"):
        agreement(folder)


def test_the_order_is_shown_as_a_table(folder):
    *_, row = markdown(folder).splitlines()
    assert row == "| A | objects | published | 0.33 | 0.33 to 1.00 | 2 of 3 | 0.500 | mace and uce |"
    (folder / "objects.json").unlink()
    assert markdown(folder) == NOTHING


def test_without_records_there_is_nothing_and_a_file_without_columns_is_refused(tmp_path):
    (tmp_path / "published.csv").write_text(PUBLISHED)
    assert agreement(tmp_path).empty
    (tmp_path / "published.csv").write_text("source,task,method\nA,objects,MACE\n")
    with pytest.raises(MaceError, match="lacks the column h"):
        agreement(tmp_path)


def test_the_shipped_table_names_methods_that_there_are():
    table = read_published()
    assert set(NAMES.values()) <= set(methods()) and len(table) >= 15
    assert table.h.between(0, 100).all() and {"objects", "celebrities-100"} == set(table.task)
