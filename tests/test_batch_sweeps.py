from pathlib import Path

import pytest

from macelib.batch import plan, read_sweep

SWEEPS = sorted((Path(__file__).resolve().parent.parent / "notebooks" / "sweeps").glob("*.yaml"))


def test_there_is_a_small_one_to_begin_with_and_three():
    assert [path.stem for path in SWEEPS] == ["concepts_seeds", "first", "lambda_rank", "timesteps_steps"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_ready_sweeps_fit_their_notebook(path, tmp_path):
    sweep = read_sweep(path)
    runs = plan(sweep.notebook, sweep.runs, tmp_path)
    assert (2 if path.stem == "first" else 12) <= len(runs) == len(sweep.runs) <= 24
