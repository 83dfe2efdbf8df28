"""metrics.json: added to, atomic, and refusing what is no number."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from macelib import MaceError, load_pipeline
from macelib.models.about import about
from macelib.show import results, viz


def test_record_adds_and_replaces(tmp_path):
    results.record(tmp_path / "run", model="mini-sd", H_o={"ship": {"original": 1.5}}, seeds=[0, 1])
    path = results.record(tmp_path / "run", H_o={"ship": {"erased": np.float32(92.5)}, "frog": torch.tensor(3)})
    assert json.loads(path.read_text()) == {
        "model": "mini-sd",
        "H_o": {"ship": {"erased": 92.5}, "frog": 3},  # nothing of an earlier run stays
        "seeds": [0, 1],
    }
    results.record(tmp_path / "run", H_o=1, flag=np.bool_(True), nothing=None)
    assert results.read(tmp_path / "run") == {"model": "mini-sd", "H_o": 1, "seeds": [0, 1], "flag": True} | {
        "nothing": None
    }
    assert {*os.listdir(tmp_path / "run")} - {".metrics.lock"} == {"metrics.json"}  # nothing temporary is left


def test_what_others_record_meanwhile_stays(tmp_path):
    """One of them reads, and has not written yet, when the others come."""
    with ThreadPoolExecutor(8) as several:
        list(several.map(lambda i: results.record(tmp_path, **{f"of {i}": i}), range(40)))
    assert results.read(tmp_path) == {f"of {i}": i for i in range(40)}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"erased": [1.0, float("nan")]}, r"H_o\.erased\[1\] is nan"),
        (float("inf"), "H_o is inf"),
        (np.float64("nan"), "H_o is nan"),
        (np.zeros(2), "H_o is a ndarray"),
        (object(), "H_o is a object"),
    ],
)
def test_record_refuses(tmp_path, value, said):
    results.record(tmp_path, before=1)
    with pytest.raises(MaceError, match=said):
        results.record(tmp_path, good=2, H_o=value)
    assert results.read(tmp_path) == {"before": 1}


@pytest.mark.parametrize("text", ["{", "[1]", '{"a":' + "[" * 10**5])
def test_damaged_metrics(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(MaceError, match=r"metrics\.json .*: delete it"):
        results.record(tmp_path, a=1)


@pytest.mark.slow
def test_figure_is_light(tmp_path):
    noise = np.random.default_rng(0).random((4, 8, 128, 128, 3))
    path = results.save_figure(tmp_path, "noise", viz.grid(noise))
    assert path.name == "noise.png" and 10_000 < path.stat().st_size <= viz.LIMIT


def test_environment_names_no_place():
    about = results.environment()
    assert about["versions"]["torch"] == torch.__version__
    assert os.path.expanduser("~") not in json.dumps(about) and os.getcwd() not in json.dumps(about)
    results._plain(about, "environment")  # can be recorded


def test_a_summary_is_what_is_to_be_read_first(tmp_path):
    results.summarise(tmp_path / "run", "a table", 3)
    assert results.summarise(tmp_path / "run", "a table", 4).read_text() == "a table\n\n4\n"


def test_bars_count(capsys):
    with results.Bars() as bars:
        bars("images", 1, 4, "ship")
        bars("images", 4, 4, "frog")
        assert bars.bars["images"].n == 4


def test_what_a_model_s_pictures_depend_on_can_be_recorded(tmp_path):
    """DPM-Solver++ has a limit of minus infinity, which JSON has no number for."""
    pipe = load_pipeline("mini-sd", device="cpu")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    found = about(pipe)
    assert found["scheduler"]["lambda_min_clipped"] == "-inf"
    assert results.read(results.record(tmp_path, settings=found).parent)["settings"] == found
