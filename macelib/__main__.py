"""`python -m macelib` is `mace`, also where a shell does not find the command."""

from .cli import main

main()
