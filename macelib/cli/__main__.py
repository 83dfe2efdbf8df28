"""`python -m macelib.cli`."""

from . import main

main()
