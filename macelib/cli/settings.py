"""What `mace erase` and `mace plan` are asked: the concepts and the settings, from the command line and from files."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MaceError

Concepts = Annotated[list[str] | None, typer.Argument(help='"name=anchor", as many as you like')]
List = Annotated[Path | None, typer.Option("--list", "-l", help="concepts in a .yaml, .csv, .json or .txt")]
Kind = Annotated[
    str, typer.Option(help="kind of the concepts given as arguments: object, style, celebrity or explicit")
]
Preset = Annotated[
    str | None,
    typer.Option(help="paper, mini, untested or best: sets the fields left open; the model's own by default"),
]
Task = Annotated[
    str | None,
    typer.Option(help="settings for all concepts as for objects, celebrities, styles or explicit, whatever kind"),
]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="settings in a YAML file")]
Seed = Annotated[int | None, typer.Option(help="instead of the settings' seed")]
Captions = Annotated[str | None, typer.Option(help="captions to preserve: builtin, or a .txt, .json (COCO) or .csv")]
Keep = Annotated[
    list[str] | None, typer.Option(help="a name that must stay, or a .txt with one a line; as many as you like")
]


def settled(concepts, list_, kind, config, seed, preset, task, captions, keep, low_memory):
    """The concepts and the settings that a command line asks for; MaceError for what cannot be."""
    from ..concepts import parse_concept, read_concepts
    from ..config import EraseConfig

    chosen = [parse_concept(text, kind) for text in concepts or ()]
    chosen += read_concepts(list_) if list_ else []
    settings = EraseConfig.load(config) if config else EraseConfig()
    if seed is not None:
        settings = dataclasses.replace(settings, seed=seed)
    settings = _by_preset(settings, preset, task)
    if captions is not None:
        settings = dataclasses.replace(settings, prior=dataclasses.replace(settings.prior, captions=captions))
    if keep:
        if settings.prior.domain:
            raise MaceError(f"prior.domain in {config} and --keep both say what must stay: give one of them.")
        settings = settings.keeping(_kept(keep, [concept.name for concept in chosen]))
    return chosen, settings.low_memory() if low_memory else settings


def _by_preset(settings, preset: str | None, task: str | None):
    """The settings with a preset to fill them, and a row of it for all concepts; MaceError where there is none such."""
    if preset is None and task is None:
        return settings
    chosen = type(settings).preset(preset or settings.preset_name or "mini", task)  # says what is wrong with either
    row = settings.defaults if task is None else chosen.defaults
    return dataclasses.replace(settings, preset_name=preset or settings.preset_name, defaults=row)


def _kept(values: list[str], erased: list[str]) -> list[str]:
    """Names to keep, from the command line and from files of names; MaceError where one is to be erased."""
    from ..concepts import kept_names, refuse_both

    names = kept_names(values)
    refuse_both(erased, names)
    return names
