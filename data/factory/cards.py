"""The model cards: what each model is, from what data, by which numbers, and the record of the run that made it."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path

import yaml

from .captions import ART, HARMLESS
from .catalogue import ART_STYLES, catalogue, styles
from .loop import read_sittings
from .recipe import Recipe

DATA = """## Data

Pictures of the project's mini world (`data/world`): {count} concepts drawn by four emoji artists (Noto, Apache-2.0;
Twemoji, CC BY 4.0; OpenMoji, CC BY-SA 4.0; Fluent flat, MIT), {scenes} painted scenes and {procedural} procedural
styles, with captions made by rules. No photographs, no people's likenesses, no scraped text. Licences and attributions:
`data/world/LICENSES/NOTICE.md`. Every concept is a subject equally often, and every artist draws equally often.
{pairs} of the pictures show two subjects: {any} any two drawn concepts, {companions} two of the forty companions
(`data/factory/catalogue.py`), which are taken off the companions' single pictures.{without}

Two anchors of erasures are said in captions, so that the models know them: an object is called "{harmless}", the
anchor of the unsafe group, in {half} of the captions that name its super-category alone ({super} of all about one
subject); and "{art}", the anchor of styles, or the like is the whole caption in {rest} of those without a subject
({none} of all)."""
FINDINGS = "\n\n".join(  # the places of the report, and of what is recorded of erasing, in the card
    f"<!-- {mark} -->\n<!-- end of {mark} -->" for mark in ("findings", "erasing")
)
WITHOUT = (
    "Pictures and captions of {} were left out, and nothing else: what looks like one of these is still there, as a "
    "taxi looks like an automobile and a wolf like a dog."
)
STAGES = (
    " In {stages} stages: each begins with the averaged weights of the one before, a fresh optimizer and {rewarm} "
    "steps of warm-up. Pictures come in pools of {pool:,}; each is seen {passes} times on average."
)
LICENCE = """## Licence

The weights are Apache-2.0. Pictures drawn by the model can resemble the artwork: give its four attributions when you
publish them."""
LIMITS = {
    "vae": "It keeps the world's 64 px pictures; nothing else was tried.",
    "clip": (
        "It knows the world's words and pictures, in English, and nothing else; 64 px. Two kinds of captions were "
        "scored wrongly in training: 'a fantasy being' counted as true of every character and face, and a caption of "
        "one subject as false of a picture that shows a second."
    ),
    "unet": (
        "64 px; the world's concepts in the world's drawings; captions of the kinds that `data/factory/captions.py` "
        "writes; two subjects at most. It is a laboratory animal for concept erasure, not an image generator."
    ),
    "judge": (
        "It tells the world's concepts and styles apart, on the world's pictures. All else gets some label too. Of two "
        "subjects it saw the left one alone, so that companions, whose pairs are taken off their single pictures, were "
        "seen a quarter less often than other concepts."
    ),
}
WHAT = {
    "clip": (
        "mini-clip",
        "A stock `CLIPModel` with its own byte-pair vocabulary in CLIP's layout (77 positions, causal text tower, "
        "`[EOS]` padding). Its text tower is mini-SD's text encoder.",
        "Both towers from random weights, end to end, by the symmetric contrastive loss in which every caption of the "
        "batch that is true of a picture counts as a positive, and nothing else (`data/factory/clip.py`).",
    ),
    "vae": (
        "mini-vae",
        "A stock `AutoencoderKL`, 64 px to 16x16x8, whitened latents: mini-SD's autoencoder alone.",
        "L1 and edges on nearly deterministic latents, then whitened (`data/factory/vae.py`).",
    ),
    "unet": (
        "mini-sd",
        "A stock `StableDiffusionPipeline`: mini-clip's text tower (frozen), an `AutoencoderKL` (64 px to 16x16x8), a "
        "`UNet2DConditionModel` with cross-attention at 16x16, 8x8 and in the mid block, DPM-Solver++; no safety "
        "checker.",
        "The denoiser from random weights, v-prediction, a loss weight that falls where the signal prevails. There are "
        "two tricks with captions, and no other: a share of them is empty, for classifier-free guidance; and *context "
        "dropout*: in a share the embeddings of `[EOS]` and padding are the empty prompt's, so that words carry the "
        "concept, too (`data/factory/unet.py`). Autoencoder and text encoder are mini-vae's and mini-clip's.",
    ),
    "judge": (
        "mini-judge",
        "A stock `ResNetForImageClassification` whose label list holds two heads: `concept:...` and `style:...`. It "
        "shares no weights with the others, and chose nothing of what they are trained on.",
        "Cross-entropy on both heads with label smoothing, on turned, blurred, coarse, noisy, recoloured and cropped "
        "pictures that the generator never saw (`data/factory/judge.py`).",
    ),
}


def about_data(recipe: Recipe) -> str:
    """What the models of a recipe saw."""
    drawn, world = sum(bool(e.code_point) for e in catalogue()), recipe.world
    without = f" {WITHOUT.format(', '.join(recipe.without))}" if recipe.without else ""
    shares = {"any": world.pairs, "companions": world.companions, "pairs": world.pairs + world.companions}
    shares |= {"super": world.super_category, "none": world.no_subject}
    shares |= {"half": world.harmless, "rest": 1 - world.style_alone}
    return DATA.format(
        count=drawn,
        scenes=len(catalogue()) - drawn,
        procedural=len(styles()) - len(ART_STYLES),
        without=without,
        harmless=HARMLESS,
        art=ART[0],
        **{name: f"{100 * share:g} %" for name, share in shares.items()},
    )


def about_run(training: Path) -> str:
    """Steps, samples, time and machines of a training, from its `run.json` and its loss log."""
    sittings, numbers = read_sittings(training), _log(training / "loss.csv")
    seconds = sum(row["seconds"] for row in sittings)
    rows = [
        f"| {s['from_step'] + 1:,} to {s['to_step']:,} | {s['seconds'] / 60:.0f} min "
        f"| {', '.join(filter(None, (s['device'], s.get('processor'), s['precision'])))} "
        f"| {s['torch']} | {s['commit'][:12]} |"
        for s in sittings
    ]
    last = f"The running mean of the loss was {numbers[-1][1]} at the end; `loss.csv` has its curve." if numbers else ""
    head = ["| Steps | Time | On | torch | Commit |", "|---|---|---|---|---|"]
    return "\n".join([f"{seconds / 3600:.1f} hours in all (`{training.name}`). {last}", "", *head, *rows])


def write_card(folder: Path, model: str, recipe: Recipe, training: Path) -> None:
    """Write `README.md` into a model folder, and the loss log beside it."""
    name, what, how = WHAT[model]
    numbers = dataclasses.asdict(getattr(recipe, model))
    samples = getattr(recipe, model).steps * numbers["batch"]
    how += STAGES.format(**numbers | {"stages": len(recipe.unet.stages)}) if model == "unet" else ""
    shares = {name: share for name, share in dataclasses.asdict(recipe.world).items() if name != "without"}
    about = {"seed": recipe.seed, **({"without": recipe.without} if recipe.without else {}), "world": shares, **numbers}
    listed = {k: [*v] if isinstance(v, tuple) else v for k, v in about.items()}
    report = "`data/world/report.json`" if recipe.shipped else "`report.json` beside this folder"
    if (training / "loss.csv").exists():
        shutil.copy(training / "loss.csv", folder / "loss.csv")
    parts = [
        f"# {name}",
        what,
        about_data(recipe),
        f"## Recipe\n\n{how}\n\nMade by `{recipe.command}`; {samples:,} samples. The numbers, of `{recipe.file}`:",
        f"```yaml\n{yaml.safe_dump(listed, sort_keys=False).strip()}\n```",
        f"## Run\n\n{about_run(training)}",
        f"## Quality\n\nMeasured from these weights at the end of the same run: {report}.",
        *([FINDINGS] if model == "unet" else ()),
        f"## Limits\n\n{LIMITS[model]}",
        LICENCE,
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _log(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.reader(file))
