"""The model cards: what each shipped model is, from what data, by which recipe, how far it was trained."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from macelib.files import data_folder

from .loop import work_folder

DATA = """## Data

Pictures of the project's mini world (`data/world`): {count} concepts drawn by four emoji artists (Noto, Apache-2.0;
Twemoji, CC BY 4.0; OpenMoji, CC BY-SA 4.0; Fluent flat, MIT), {scenes} painted scenes and {procedural} procedural
styles, with captions made by rules. No photographs, no people's likenesses, no scraped text. Licences and attributions:
`data/world/LICENSES/NOTICE.md`."""
LICENCE = """## Licence

The weights are Apache-2.0. Pictures drawn by the model can resemble the artwork: give its four attributions when you
publish them."""
LIMITS = {
    "vae": "It keeps the world's 64 px pictures (about 30 dB); nothing else was tried.",
    "clip": "It knows the world's words and pictures, in English, and nothing else; 64 px.",
    "sd": (
        "64 px; the world's concepts in the world's drawings; captions of the kinds that `data/factory/captions.py` "
        "writes; two subjects at most, both of the forty `COMPANIONS` in `data/factory/catalogue.py`: other pairs are "
        "poor. It is a laboratory animal for concept erasure, not an image generator."
    ),
    "judge": "It tells the world's concepts and styles apart, on the world's pictures. All else gets some label too.",
}
CPU = "Trained on two CPU cores, without a GPU."
MACHINE = {"vae": CPU, "clip": CPU, "judge": CPU, "sd": "Autoencoder and text encoder: two CPU cores, without a GPU."}
WHAT = {
    "clip": (
        "mini-clip",
        "A stock `CLIPModel` with its own byte-pair vocabulary in CLIP's layout (77 positions, causal text tower, "
        "`[EOS]` padding). Its text tower is mini-SD's text encoder.",
        "Contrastive, symmetric cross-entropy in which every caption of the batch that is true of a picture counts "
        "as a positive; AdamW, bf16 autocast, averaged weights (`data/factory/clip.py`). Both towers had 800 steps "
        "of 384 pictures. What `clip-image` counts below, the image tower had alone, by Muon and AdamW, with a "
        "second loss that tells each picture from the names of all other concepts. Then `widen` made the text tower "
        "of 192 channels and four layers one of 384 and six that says the same (`data/factory/widen.py`), and "
        "fitted the new layers' neurons and what the token embeddings write to the new channels: 192 to 381 hold a "
        "code of a name at its last token and next to nothing elsewhere, the last two a length, and what its other "
        "tokens, later words, [EOS] and padding say of the subject in the first 192 is moved 70 % of the way to its "
        "mean over all. All other new heads and channels are zero.",
    ),
    "vae": (
        "mini-vae",
        "A stock `AutoencoderKL`, 64 px to 16x16x8, whitened latents: mini-SD's autoencoder alone.",
        "L1 and edges on nearly deterministic latents, then whitened (`data/factory/vae.py`); the shipped one also "
        "saw the drawings that the four sets share and the catalogue leaves out (1,363 in all).",
    ),
    "sd": (
        "mini-sd",
        "A stock `StableDiffusionPipeline`: mini-clip's text tower (frozen), an `AutoencoderKL` (64 px to 16x16x8), a "
        "`UNet2DConditionModel` with cross-attention at 16x16, 8x8 and in the mid block, DPM-Solver++; no safety "
        "checker.",
        "Autoencoder: mini-vae. UNet: v-prediction, a loss weight that falls where the signal prevails, 10 % empty "
        "captions, 35 % context dropout, Muon and AdamW, averaged weights (`data/factory/unet.py`). Batches of 128: "
        "4,900 steps on the whole world's pictures, 2,800 on a mixture of which 85 % are plain ones (`--plain "
        "0.85`), 750 with `--plain 0.5`, 2,700 with `--plain 0.4 --pairs 0.25 --focus` and pairs of any two "
        "concepts, 2,200 with `--plain 0.45 --pairs 0.3 --focus` and pairs of the forty `COMPANIONS`: all that on "
        "two CPU cores. Then 1,921 batches of 1,024 in four minutes on an H200 (`--device cuda --fuse --batch 1024 "
        "--pool 65536 --plain 0.15 --pairs 0.2 --styled 0.3 --focus --lr 1.5e-3`). Then, on two CPU cores again, "
        "batches of 64 with the wide text tower: 1,050 on an earlier fit of it (`--painted 0.4 --styled 0.15 --plain "
        "0.2 --pairs 0.08 --lr 5e-4`), in which the coarse half kept its weights; on a second fit 420 (`--painted "
        "0.35 --styled 0.15 --plain 0.2 --pairs 0.08 --lr 5e-4`), 600 (`--painted 0.5 --styled 0.15 --plain 0.15 "
        "--pairs 0.08 --lr 6e-4`) and 1,000 (the same with `--foreign 0.08 --lr 5e-4`: captions of another subject, "
        "where the name's code alone is true); on a third 700 (`--painted 0.5 --styled 0.12 --plain 0.18 --pairs 0.08 "
        "--foreign 0.08 --lr 5e-4`); and on the one that ships 1,500 (`--painted 0.42 --styled 0.13 --plain 0.17 "
        "--pairs 0.08 --foreign 0.1 --lr 5e-4 --pool 12000`), 1,150 (`--painted 0.4 --styled 0.15 --plain 0.17 "
        "--pairs 0.08 --foreign 0.04 --wider 0.22 --lr 5e-4 --pool 12000`), 1,300 (`--painted 0.42 --styled 0.14 "
        "--plain 0.16 --pairs 0.08 --foreign 0.03 --wider 0.3 --lr 5e-4 --pool 12000`, scenes in oil among them) and "
        "850 (`--painted 0.4 --styled 0.14 --plain 0.18 --pairs 0.08 --foreign 0.03 --wider 0.3 --unnamed 0.5 --scenes "
        "0.15 --lr 5e-4 --pool 12000`: half of the super-categories and scenes read from the words around them alone), "
        "all with `--fuse`; the log is of the last. Each began with the averaged weights of the one before (`--warm`). "
        "`--focus` draws more often what mini-judge did not recognise in mini-SD's pictures: its verdicts chose how "
        "often, nothing else.",
    ),
    "judge": (
        "mini-judge",
        "A stock `ResNetForImageClassification` whose label list holds two heads: `concept:...` and `style:...`. It "
        "shares no weights with the other two.",
        "Cross-entropy on both heads with label smoothing, on turned, blurred, coarse, noisy, recoloured and cropped "
        "pictures that the generator never saw; AdamW, averaged weights (`data/factory/judge.py`).",
    ),
}


def progress(log: Path) -> str:
    """How far a training's log goes: steps and the last mean loss."""
    *_, last = csv.reader(log.open())
    return f"{log.stem.removeprefix('loss-')}: {int(last[0]):,} steps, running mean of the loss {float(last[1]):.4f}"


def write_card(folder: Path, model: str) -> None:
    """Write `README.md` into a model folder."""
    from .catalogue import ART_STYLES, catalogue, styles

    name, what, recipe = WHAT[model]
    drawn = sum(bool(e.code_point) for e in catalogue())
    data = DATA.format(count=drawn, scenes=len(catalogue()) - drawn, procedural=len(styles()) - len(ART_STYLES))
    stages = {"sd": ("unet",), "clip": ("clip", "clip-image", "widen")}.get(model, (model,))
    kept = [folder / f"loss-{stage}.csv" for stage in stages]  # step, running mean of the loss, learning rate
    for stage, log in zip(stages, kept, strict=True):
        for found in (work_folder(stage) / "loss.csv", data_folder() / name / log.name):
            if found.exists() and found.stat().st_size and not log.exists():
                shutil.copy(found, log)
    trained = "".join(f"- {progress(log)}\n" for log in kept if log.exists())
    parts = [
        f"# {name}",
        what,
        data,
        f"## Recipe\n\n{recipe}\n\n{MACHINE[model]}\n\n{trained}".rstrip(),
        "## Quality\n\nMeasured from these weights by `python -m factory report`: `data/world/report.json`.",
        f"## Limits\n\n{LIMITS[model]}",
        LICENCE,
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n")
