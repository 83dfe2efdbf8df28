"""`python -m factory`: make the mini world by its recipe, from the artwork to the report; `make world` calls it."""

from __future__ import annotations

import errno
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError

from . import recipe as recipes

FULL = " Free some space, or set MACELIB_WORK to a folder on another disk; the same command goes on."
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def world(
    recipe: Annotated[Path, typer.Option(help="another recipe; its models go into a folder of their own")] = (
        recipes.SHIPPED
    ),
) -> None:
    """Train, assemble and measure; a run that was cut short goes on."""
    from .run import run

    typer.echo(f"The models are in {run(recipes.load(recipe))}")


def main() -> int:
    """Run the command line; its exit code: 1 an error, a sentence on standard error, 2 wrong usage, 130 ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except SystemExit as end:
        return end.code or 0
    except (ValueError, OSError, FloatingPointError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "no space left" in str(error).lower()
        typer.echo(f"error: {error}{FULL * full}", err=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
