"""The README's lines of `mace`, each run as printed, one after the other: later ones read what earlier ones wrote."""

import time

import pytest
from test_readme import ROOT, SHELL, clone, environment, run  # noqa: F401

BLOCKS = SHELL[2:]  # after installing, and `make`


def test_the_blocks_are_commands():
    assert len(BLOCKS) == 2 and all(line.startswith("mace ") for block in BLOCKS for line in block.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_every_command_runs_as_printed(block, clone, environment):  # noqa: F811
    for line in BLOCKS[block].splitlines():
        started = time.monotonic()
        run(line, clone, environment | {"PYTHONPATH": str(ROOT)})
        print(f"{time.monotonic() - started:5.1f} s  {line}")
