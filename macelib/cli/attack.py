"""Command `mace attack`: tries to get erased concepts back, and says what else the same attack gets back."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MaceError
from ..show.progress import Bars
from .options import Device, Dtype, Guidance, Local, LowMemory, Model, Revision, example, pipeline


def attack(
    erasure: Annotated[Path, typer.Argument(help="an erasure file, or the edit of another method")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="folder: attacks.json, and a file of rows per concept")
    ] = ...,
    attack_: Annotated[list[str] | None, typer.Option("--attack", "-a", help="one by name; all unless given")] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="none (the attack itself), original, no-attack, foreign, never-knew; all unless given"),
    ] = None,
    concept: Annotated[list[str] | None, typer.Option(help="one of the erased; all unless given")] = None,
    seeds: Annotated[int, typer.Option(help="seeds per prompt", min=1)] = 3,
    settings: Annotated[Path | None, typer.Option(help="a YAML file: settings by attack")] = None,
    foreign: Annotated[
        Path | None,
        typer.Option(
            help="of foreign: pictures of what the model never knew, by sub-folder or file name; mini-SD: the shipped"
        ),
    ] = None,
    never_knew: Annotated[
        str | None, typer.Option(help="of never-knew: a model that was trained without the concepts")
    ] = None,
    classifier: Annotated[str | None, typer.Option(help="who judges, as in `mace evaluate`; the model's own")] = None,
    among: Annotated[list[str] | None, typer.Option(help="a name that CLIP chooses among, beside the erased")] = None,
    model: Model = "mini-sd",
    steps: Annotated[int, typer.Option(help="denoising steps of a picture", min=1)] = 25,
    guidance: Guidance = None,
    batch: Annotated[int, typer.Option(help="pictures drawn at once", min=1)] = 8,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
    low_memory: LowMemory = False,
) -> None:
    """Attack an erasure, with controls: success rates, intervals and what was spent. Cut short, it goes on."""
    from ..attacks import CONTROLS, Nearest, Result, attacks, named, read_pictures
    from ..attacks import attack as run
    from ..concepts import Concept
    from ..erasure import versions
    from ..evaluate.attacked import write_table
    from ..evaluate.classifiers import classifier_for, plugged
    from ..files import check_writable, data_folder, locked
    from ..models.families import family_of
    from ..reading import read_data

    chosen, controls = attack_ or attacks(), control or list(CONTROLS)
    for name in chosen:
        named(name)
    if unknown := [name for name in controls if name not in CONTROLS]:
        raise MaceError(f"There is no control {unknown[0]!r}: choose from {', '.join(CONTROLS)}.")
    values = read_data(settings, "settings of attacks")[0] if settings else {}
    if not isinstance(values, dict):
        raise MaceError(f"{settings} must hold a mapping from attacks to their settings.")
    for name in values:
        named(name)
    change = _loaded(erasure)
    concepts = [c for c in change.concepts if c.name in (concept or [c.name])]
    if missing := sorted(set(concept or ()) - {c.name for c in concepts}):
        held = ", ".join(c.name for c in change.concepts)
        raise MaceError(f"{missing[0]!r} is not in {erasure}; it holds {held}.")
    pictures = read_pictures(foreign) if foreign else {}
    check_writable(out)
    with locked(out / ".lock", str(out), wait=False):
        pipe = pipeline(model, revision, local_files_only, device, dtype, low_memory)
        change.check(pipe)
        if not foreign and "foreign" in controls and family_of(pipe).catalogue is not None:
            pictures = read_pictures(data_folder() / "attacks" / "foreign")
        never = pipeline(never_knew, None, local_files_only, device, dtype, low_memory) if never_knew else None
        who = plugged(classifier) if classifier else classifier_for(pipe)
        judge = _Among(who, [c.name for c in concepts], among or [])
        stranger = Nearest(*_gallery(pipe, pictures)) if pictures and "foreign" in controls else None
        drawing = {"steps": steps, "guidance": guidance, "batch": batch, "seeds": range(seeds), "folder": out}
        result = Result()
        with Bars() as bars:
            for name in chosen:
                common = {**drawing, "settings": values.get(name), "never": never, "progress": bars}
                for kind in controls:
                    if kind != "foreign":
                        for one in concepts:
                            result += run(pipe, change, one, name, judge=judge, control=kind, **common)
                        continue
                    if not pictures:
                        why = "no pictures of concepts that the model does not know were given"
                        missing = {"attack": name, "control": kind, "method": change.title, "metric": "ASR", "why": why}
                        result += Result(not_measured=[missing])
                    for word, shown in pictures.items():
                        strange = Concept(word, "a thing", concepts[0].kind)
                        result += run(
                            pipe, change, strange, name, judge=stranger, control=kind, pictures=shown, **common
                        )
        about = {**versions(), "model": model, "judge": who.name, "device": str(pipe.device)}
        about |= {"steps": steps, "guidance": guidance, "seeds": seeds, "settings": values}
        path = write_table(out / "attacks.json", result, shlex.join(["mace", *sys.argv[1:]]), about)
    for row in _lines(path):
        typer.echo(row)


def _loaded(path: Path):
    """An erasure, or an edit."""
    from ..baselines import Edit
    from ..baselines.edit import FORMAT
    from ..erasure import Erasure
    from ..files import read_tensors

    return (Edit if read_tensors(path)[0].get("format") == FORMAT else Erasure).load(path)


class _Among:
    """A classifier that chooses among all that it knows, or (CLIP) among the names given; MaceError without any."""

    def __init__(self, who, names: list[str], among: list[str]):
        from ..evaluate.judge import ClipClassifier

        self.who, self.options = who, None if getattr(who, "concepts", None) else [*dict.fromkeys([*names, *among])]
        if isinstance(who, ClipClassifier) and not among:
            raise MaceError(f"{who.name} has no list of names of its own: say with --among what else there may be.")
        who.check(self.options or names)

    def top1(self, pictures, among=None):
        return self.who.top1(pictures, self.options)


def _gallery(pipe, foreign: dict) -> tuple:
    """The scorer of the model's family, and the foreign pictures beside those of its catalogue."""
    from PIL import Image

    from ..evaluate.classifiers import classifier_for
    from ..models.families import family_of
    from ..models.mini import renderings

    if family_of(pipe).catalogue is None:
        raise MaceError("Foreign pictures are told from a catalogue's, and this model has none: leave out --foreign.")
    names, shown, _ = renderings()
    if both := sorted(set(names) & set(foreign)):
        raise MaceError(f"{both[0]!r} is not foreign: it is in the catalogue.")
    tiles = (shown.flatten(1, 2).permute(0, 1, 3, 4, 2) * 255).round().byte().numpy()  # (n, artists · 2, 64, 64, 3)
    known = {name: [Image.fromarray(tile) for tile in row] for name, row in zip(names, tiles, strict=True)}
    return classifier_for(pipe, "styles"), known | foreign


def _lines(path: Path):
    """The success rates in words."""
    import json

    found = json.loads(path.read_text(encoding="utf-8"))
    for row in found["rows"]:
        if row["metric"] in ("ASR", "pre-ASR"):
            told = f"{row['mean']:.1f} % ({row['low']:.1f} to {row['high']:.1f}), n = {row['n']}"
            where = ", ".join(filter(None, [row["attack"], row["control"], row["method"], row["settings"]]))
            yield f"{where}: {row['metric']} {told}"
    for row in found["not_measured"]:
        yield f"{row['attack']}, {row['control']}: not measured, {row['why']}"
    yield str(path)


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command(
        epilog=example(
            "mace attack runs/ship/erasure.safetensors --attack ring-a-bell --attack wording --out runs/ship/attacks",
            "mace attack runs/ship/erasure.safetensors --foreign pictures/ --steps 8 --out runs/ship/attacks",
        )
    )(attack)
