"""A recipe from beginning to end: artwork, trainings, model folders, report; each part is taken up where it stopped."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from macelib.files import data_folder, locked, usual_permissions

from . import assemble, build
from .cards import write_card
from .clip import export_clip, train_clip
from .judge import export_judge, train_judge
from .loop import Record, averaged, work_folder
from .recipe import Recipe
from .shipped import write_shipped
from .table import into_readme
from .unet import train_unet
from .vae import export_vae, train_vae

log = logging.getLogger(__name__)
TOWERS = "capacity.csv"  # how many names one map can move, by the towers of the recipe
FOLDER = {"clip": "mini-clip", "vae": "mini-vae", "judge": "mini-judge", "unet": "mini-sd"}
READS = {"clip": (), "vae": (), "judge": (), "unet": ("clip", "vae")}  # models that a training reads


class World:
    """The models of a recipe while they are made: where each is trained, and where the finished ones are."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.folder = recipe, work_folder() / f"{recipe.name}-models"

    def model(self, model: str) -> Path:
        """The folder of a finished model: of this recipe where it trains it, else the shipped one."""
        return (self.folder if model in self.recipe.models else data_folder()) / FOLDER[model]

    def training(self, model: str) -> Path:
        """Where a training keeps its checkpoints: named by all that it depends on."""
        made_with = [weights_hash(self.model(other)) for other in READS[model]]
        return work_folder() / f"{model}-{self.recipe.key_of(model, made_with)}"

    def train(self, model: str) -> Iterator[Record]:
        """The steps of a training that are still to be made."""
        numbers, world, seed = getattr(self.recipe, model), self.recipe.world, self.recipe.seed
        common = self.training(model), numbers, world, seed
        match model:
            case "clip":
                yield from train_clip(*common)
            case "vae":
                yield from train_vae(*common)
            case "judge":
                yield from train_judge(*common)
            case "unet":
                vae = assemble.autoencoder(self.model("vae"))
                yield from train_unet(*common, vae, *assemble.text_encoder(self.model("clip")))

    def export(self, model: str) -> Path:
        """Write a finished model's folder with its card."""
        training, numbers = self.training(model), getattr(self.recipe, model)
        weights = averaged(training, numbers.steps)

        def write(folder: Path) -> None:
            match model:
                case "clip":
                    export_clip(folder, weights, training, numbers)
                case "vae":
                    export_vae(folder, weights, numbers, self.recipe.world)
                case "judge":
                    export_judge(folder, weights)
                case "unet":
                    assemble.export_pipeline(folder, weights, numbers, self.model("clip"), self.model("vae"))
            write_card(folder, model, self.recipe, training)

        return assemble.replace_folder(self.folder / FOLDER[model], write)

    def make(self) -> Path:
        """Train and export whatever is not finished; the folder of the models."""
        build.ensure_atlas()
        for model in self.recipe.models:
            training = self.training(model)
            card = self.folder / FOLDER[model] / "README.md"
            if card.exists() and training.name in card.read_text(encoding="utf-8"):
                continue  # made, whether its checkpoints are still there or not
            with locked(training.with_suffix(".lock"), str(training), wait=False):  # another recipe may share it
                for _ in shown(self.train(model), model):
                    pass
                self.export(model)
        return self.folder


def shown(records: Iterator[Record], name: str) -> Iterator[Record]:
    """The records behind a progress bar."""
    bar = None
    for record in records:
        if bar is None:
            bar = tqdm(total=record.steps, initial=record.step - 1, desc=name, mininterval=10)
        bar.update(record.step - bar.n)
        bar.set_postfix(loss=f"{record.loss:.4f}", rate=f"{record.rate:.1f}/s", refresh=False)
        yield record
    if bar is not None:
        bar.close()


def weights_hash(folder: Path) -> str:
    """SHA-256 over the weight files of a model's folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run(recipe: Recipe) -> Path:
    """Make the world of a recipe and measure it; the folder of its models.

    The shipped recipe's models take the place of those in `data/` when all are finished, not before; those of another
    recipe stay in a folder of their own. ValueError where the same recipe is being made by another process.
    """
    world = World(recipe)
    world.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(world.folder / ".lock")
    try:
        with lock.acquire(timeout=0):
            from macelib.lessons.capacity import real_encoder

            from .report import write_report
            from .towers import write_towers

            real_encoder()  # the report needs it, hours from now
            folder = world.make()
            report = write_report(recipe, {model: world.model(model) for model in FOLDER}, folder)
            if "clip" in recipe.models and recipe.towers.widths:
                write_towers(recipe, folder)
            if recipe.shipped:
                ship(folder)
                into_readme(report)
                folder = data_folder()
    except Timeout as error:
        raise ValueError(
            f"another process is making {recipe.name} in {world.folder}: wait for it, or end it"
        ) from error
    return folder


def ship(folder: Path) -> None:
    """Put finished models and their report in the place of those in `data/`, and what is read of the world."""
    for name in FOLDER.values():
        assemble.replace_folder(data_folder() / name, lambda new, name=name: _copy(folder / name, new))
    for name in ("report.json", "contact_sheet.png", TOWERS):
        shutil.copy(folder / name, data_folder() / "world" / name)
        usual_permissions(data_folder() / "world" / name)
    write_shipped(data_folder() / "world")
    ship_sums()


def ship_sums() -> None:
    """What the world's captions add up to by the shipped text encoder: it spares a first erasure a minute."""
    from macelib.method.prior import prior
    from macelib.models.mini import captions
    from macelib.models.pipelines import load_pipeline

    old = {*(data_folder() / "prior").glob("*")}
    with patch.dict(os.environ, MACELIB_CACHE=str(data_folder())):  # what is kept there is looked for there
        prior(load_pipeline(data_folder() / FOLDER["unet"], device="cpu"), list(captions()))
    if {*(data_folder() / "prior").glob("*")} - old:  # those of the models before
        for path in old:
            path.unlink()


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
