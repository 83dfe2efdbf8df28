"""macelib is imported before PyTorch by all tests, so that it can say how threads wait (`macelib.models.threads`)."""

import macelib  # noqa: F401
