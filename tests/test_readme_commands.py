"""The README's first block of `mace`, each line run as printed: later ones read what earlier ones wrote.

Its second block runs notebooks, as `test_batch_*.py` do.
"""

import pytest
from test_readme import ROOT, SHELL, clone, environment, run  # noqa: F401

LINES, RUNS = (block.splitlines() for block in SHELL[2:])  # after installing, and `make`


def test_the_blocks_are_commands():
    assert len(LINES) >= 14 and all(line.startswith("mace ") for line in [*LINES, *RUNS])


@pytest.mark.slow
def test_every_command_runs_as_printed(clone, environment):  # noqa: F811
    for line in LINES:
        run(line, clone, environment | {"PYTHONPATH": str(ROOT)})
