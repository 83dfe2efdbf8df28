"""A tiny notebook to sweep over, and sweeps of it; and jobs that another process can import."""

import json
import os
import signal
import time
from pathlib import Path

import yaml

PARAMETERS = """\
size = 2  # how large
rate = 0.5  # steepness
label = "a"  # anything
names = ["x"]  # list of texts
config = {}  # settings
extra: int | None = None  # may be left out
seed = 0  # of the numbers
run_folder = "."  # where metrics.json goes
"""
BODY = """\
import json, random, sys, time
from pathlib import Path
random.seed(seed)
value = size * rate + random.random()
print("drawn", value)
"""
LAST = """\
if label == "bad":
    raise ZeroDivisionError("size is wrong")
time.sleep(0.3 if label == "slow" else 0)
metrics = {"value": value, "nested": {"H_o": {"value": value / 2, "low": 0.0}}, "python": sys.executable}
Path(run_folder, "metrics.json").write_text(json.dumps(metrics))
"""


METADATA = {"kernelspec": {"name": "not-installed", "display_name": "None", "language": "python"}}


def notebook(
    folder: Path, parameters: str = PARAMETERS, tag: str = "parameters", body: str = BODY, last: str = LAST
) -> Path:
    """Write the notebook."""
    common = {"outputs": [], "execution_count": None, "cell_type": "code"}
    cells = [{**common, "id": "p", "metadata": {"tags": [tag]}, "source": parameters}]
    cells += [{**common, "id": f"c{i}", "metadata": {}, "source": text} for i, text in enumerate((body, last))]
    path = folder / "tiny.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}))
    return path


def sweep(folder: Path, **fields) -> Path:
    """Write a sweep of the notebook beside it."""
    notebook(folder)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"notebook": "tiny.ipynb", **fields}))
    return path


def square(x: float) -> float:
    return x * x


def fail(text: str) -> None:
    raise KeyError(text)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def surroundings() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}


def slow(folder: str, key: str, seconds: float, stuck: str | None = None) -> tuple[str, int]:
    """Note the start, work for a while, return something that depends on the key alone; on the node `stuck`, hang."""
    node = os.environ.get("RAY_NODE_ID")
    with open(Path(folder) / f"{key}.starts", "a") as file:
        file.write(f"{os.getpid() if stuck is None else node}\n")
    time.sleep(600 if stuck is not None and node == stuck else seconds)
    return slow_value(key)


def slow_value(key: str) -> tuple[str, int]:
    return key, sum(map(ord, key))
