"""For all tests: macelib is imported before PyTorch, so that it can say how threads wait (`macelib.models.threads`),
and property tests draw the same examples on every machine, in bounded time.
"""

from hypothesis import HealthCheck, settings

import macelib  # noqa: F401

settings.register_profile(
    "macelib", derandomize=True, deadline=None, database=None, max_examples=60, suppress_health_check=list(HealthCheck)
)
settings.load_profile("macelib")
