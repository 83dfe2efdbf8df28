"""Notices of other libraries that mean nothing to those who use macelib."""

import logging

TORCHVISION = "requires torchvision (not installed); falling back"  # it is not needed: pictures are read by Pillow


def silence() -> None:
    """Drop transformers' notice that it reads pictures without torchvision, which would end up in notebooks."""
    logging.getLogger("transformers.utils.import_utils").addFilter(lambda r: TORCHVISION not in r.getMessage())
