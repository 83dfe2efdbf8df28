"""For all tests: macelib is imported before PyTorch, so that it can say how threads wait (`macelib.models.threads`),
and property tests draw the same examples on every machine, in bounded time. Workers of pytest-xdist share the cores:
each has one thread.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import macelib  # noqa: F401

settings.register_profile(
    "macelib", derandomize=True, deadline=None, database=None, max_examples=60, suppress_health_check=list(HealthCheck)
)
settings.load_profile("macelib")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("MACELIB_CACHE", str(tmp_path / "cache"))
