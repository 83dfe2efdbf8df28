"""Commands `mace concepts` and `notebooks`: what comes with macelib besides its code."""

import difflib
import shutil
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MaceError
from .options import example


def concepts(
    word: Annotated[str | None, typer.Argument(help="a part of a name, a synonym, an anchor or a group")] = None,
) -> None:
    """What mini-SD knows: names by group, their anchors and synonyms, and styles."""
    from ..models.mini import catalogue, world

    styles = list(world()["styles"])
    if word is None:
        groups = dict.fromkeys(entry.group for entry in catalogue())
        for group in groups:
            names = [entry.name for entry in catalogue() if entry.group == group]
            typer.echo(f"{group} ({len(names)}): {', '.join(names)}\n")
        typer.echo(f"style ({len(styles)}): {', '.join(styles)}")
        return
    sought = " ".join(word.casefold().split())
    if not sought:
        raise MaceError("The word is empty: give a part of a name, or none for all of them.")
    found = [e for e in catalogue() if any(sought in t.casefold() for t in (e.name, e.group, e.anchor, *e.synonyms))]
    for entry in found:
        also = f"; also called {', '.join(entry.synonyms)}" if entry.synonyms else ""
        typer.echo(f"{entry.name} ({entry.group}): shown in its place, {entry.anchor}{also}")
    styled = [style for style in styles if sought in style.casefold()]
    for style in styled:
        typer.echo(f"{style} (style)")
    if not found and not styled:
        known = [text for entry in catalogue() for text in (entry.name, *entry.synonyms)]
        near = ", ".join(difflib.get_close_matches(sought, known, 5, 0.5)) or "nothing"
        raise MaceError(f"mini-SD knows no {word!r}; near it: {near}. `mace concepts` lists all.")


def notebooks(
    folder: Annotated[Path, typer.Argument(help="a new or empty folder")],
) -> None:
    """Copy the notebooks, with their sweeps and lists, to work on."""
    from ..files import notebooks_folder

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MaceError(f"{folder} is there already and not an empty folder: name another one.")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.py")
    try:
        shutil.copytree(notebooks_folder(), folder, dirs_exist_ok=True, ignore=ignored)
    except OSError as error:
        raise MaceError(f"The notebooks cannot be copied to {folder} ({error}): name another folder.") from error
    count = len(list(folder.glob("*.ipynb")))
    typer.echo(f"{folder}: {count} notebooks. Open them with: jupyter lab {folder / '00_start_here.ipynb'}")


def register(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command(epilog=example("mace concepts", "mace concepts ship"))(concepts)
    app.command(epilog=example("mace notebooks my-notebooks"))(notebooks)
