"""Batch execution of notebooks: parameters, sweeps, engines and an index of the runs.

mace run notebooks/06_erase_and_evaluate.ipynb -p images 20
mace batch notebooks/sweeps/lambda_rank.yaml --jobs 2
mace runs lambda_rank

It may import `config`, `errors` and `files`: what is run in a notebook or a job is not its concern.
"""

from .engines import Engine, make_engine
from .jobs import Job, Outcome
from .launch import Summary, launch
from .parameters import read_parameters
from .runs import Run, plan
from .sweep import Sweep, read_sweep

__all__ = [
    "Engine", "Job", "Outcome", "Run", "Summary", "Sweep",
    "launch", "make_engine", "plan", "read_parameters", "read_sweep",
]  # fmt: skip
