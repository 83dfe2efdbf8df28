"""The plan beside a run at the size of SD v1.4, with random weights: minutes, 5 GB of disk, 8 GB of memory."""

import json
import os
import subprocess
import sys

import pytest
from brute import real_tokenizer

from macelib.bench.layouts import random_pipeline

MOST = 8e9  # bytes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random pipeline with SD v1.4's layers."""
    folder = tmp_path_factory.mktemp("model") / "sd-v1-4-random"
    pipe = random_pipeline("SD v1.4", real_tokenizer())
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif("MACELIB_LARGE" not in os.environ, reason="5 GB of disk and 8 GB of memory: set MACELIB_LARGE=1")
def test_two_concepts_fit_and_the_plan_says_how_much_they_take(model, tmp_path):
    # The preset's 3,000 prompts of kept names take a quarter of an hour and no memory: they are left out.
    small = "images: {count: 1, steps: 2, masks: attention}\ntrain: {steps: 2}\nprior: {domain: []}\n"
    (tmp_path / "small.yaml").write_text(small)
    words = ["erase", "ship=sea", "frog=grass", "--captions", "builtin", "--config", str(tmp_path / "small.yaml")]
    words += ["--model", str(model), "--device", "cpu", "--out", str(tmp_path / "run")]
    with open(tmp_path / "said", "w") as said:
        child = subprocess.Popen([sys.executable, "-m", "macelib", *words], stderr=said, stdout=said)
        _, status, used = os.wait4(child.pid, 0)
    text = (tmp_path / "said").read_text()
    assert status == 0, text[-3000:]
    peak = used.ru_maxrss * 1024
    planned = float(text.split("memory: about ")[1].split(" GB")[0]) * 1e9
    print(json.dumps({"peak": peak, "planned": planned}), text)
    assert peak <= MOST and planned == pytest.approx(peak, rel=0.2)
