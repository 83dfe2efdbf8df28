from pathlib import Path

import pytest

from macelib.batch import plan, read_sweep
from macelib.models.mini import catalogue, names

SWEEPS = sorted((Path(__file__).resolve().parent.parent / "notebooks" / "sweeps").glob("*.yaml"))


NAMES = [
    "concepts_seeds", "first", "lambda_rank", "method_costs", "residual_words", "sampling_concepts", "scaling",
    "similar_pairs", "timesteps_steps",
]  # fmt: skip


def test_there_is_a_small_one_to_begin_with_and_one_for_each_question():
    assert [path.stem for path in SWEEPS] == NAMES


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_ready_sweeps_fit_their_notebook(path, tmp_path):
    sweep = read_sweep(path)
    runs = plan(sweep.notebook, sweep.runs, tmp_path)
    assert (2 if path.stem == "first" else 12) <= len(runs) == len(sweep.runs) <= 24


@pytest.mark.parametrize("name", ["residual_words", "sampling_concepts", "similar_pairs", "method_costs"])
def test_ready_sweeps_name_what_the_world_has(name):
    known, drawn = names(), {entry.name for entry in catalogue() if entry.drawn}
    for run in read_sweep(SWEEPS[NAMES.index(name)]).runs:
        concepts = [*run["concepts"], *run.get("near", {}), *(n for some in run.get("near", {}).values() for n in some)]
        assert set(concepts) <= drawn <= set(known)
        assert run.get("back", concepts[0]) in concepts and run.get("only", concepts[0]) in concepts
        assert set(run.get("near", run["concepts"])) == set(run["concepts"])
