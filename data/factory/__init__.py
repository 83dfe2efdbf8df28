"""What makes the mini world: catalogue, artwork, rendering, captions, trainings, model cards, report.

No part of the library: `make world` runs it. It may import `macelib`; `macelib` never imports it.
"""
