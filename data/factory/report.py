"""The report of a world's models: every measure, kept as soon as it is there, so that a killed report goes on.

What is kept counts for the same weights, recipe and measuring code. The default guidance is chosen first, on the
concepts that settings are tuned on; all else is measured at it.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from macelib.files import atomic, hash_text, into_marks
from macelib.lessons import capacity

from .captions import with_article
from .catalogue import CIFAR_10, catalogue, styles, world_folder
from .drawing import Models
from .findings import about
from .loop import work_folder
from .machine import processor
from .measures import MEASURES, _first, accuracy_and_variety, photo
from .recipe import Recipe
from .table import TARGETS, text_table

POINT = 0.01  # of mean top-1 that a smaller guidance may be below the best


def guidance_of(sweep: Mapping[float, tuple[float, float]]) -> float:
    """The smallest guidance within a point of the best mean top-1; sweep: guidance to (top-1, variety).

    >>> guidance_of({1.5: (0.70, 0.9), 3: (0.895, 0.8), 5: (0.90, 0.5)})
    3
    """
    best = max(top for top, _ in sweep.values())
    return min(g for g, (top, _) in sweep.items() if top >= best - POINT)


def contact_sheet(m: Models, path: Path) -> None:
    """Draw the ten objects, then some of every group, styles, scenes and pairs; one row each, 10 pictures a row."""
    rows = [[photo(n)] * 2 for n in CIFAR_10]
    prompts = [p for row in rows for p in row]
    for group in dict.fromkeys(e.group for e in catalogue()):
        members = [e.name for e in catalogue() if e.group == group]
        prompts += [photo(members[(i * 7) % len(members)]) for i in range(10)]
    prompts += [f"a cat in the style of {s}" for s in (*styles(), *styles())[:30]]
    pairs = zip(CIFAR_10, ("dragon", *CIFAR_10[5:], *CIFAR_10[:4]), strict=True)
    prompts += [" and ".join(with_article(name, _first()) for name in pair) for pair in pairs]
    images = m.draw(m.embed(prompts)).mul(255).round().byte()
    high = len(images) // 10
    sheet = images[: high * 10].view(high, 10, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(high * 64, 640, 3)
    temporary = path.with_suffix(".tmp")
    Image.fromarray(np.asarray(sheet)).save(temporary, format="PNG", optimize=True)
    temporary.replace(path)


def device_name(device: torch.device) -> str:
    """What a measure was taken on: "cpu", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def measured_by() -> str:
    """Hash of what decides on a measure beside the weights and the recipe: the code that takes it, and its names."""
    own = ("measures", "drawing", "render", "captions", "judge", "catalogue", "scenes", "styles")
    paths = [*(Path(__file__).with_name(f"{name}.py") for name in own), Path(capacity.__file__)]
    paths.append(world_folder() / "split.json")
    return hash_text(*(path.read_text(encoding="utf-8") for path in paths))


def write_report(recipe: Recipe, folders: Mapping[str, Path], out: Path) -> dict:
    """Measure everything, write `report.json` and `contact_sheet.png` into `out`, print the table; the report."""
    from .run import weights_hash

    hashes = {model: weights_hash(folder) for model, folder in folders.items()}
    key = hash_text(sorted(hashes.items()), dataclasses.astuple(recipe.report), measured_by())
    partial = work_folder() / f"report-{key[:16]}.json"
    results = json.loads(partial.read_text(encoding="utf-8")) if partial.exists() else {}
    models = Models(folders, recipe.report.steps, max(recipe.report.guidance), recipe.report.share)
    places = results.setdefault("measured_on", {})

    def keep(name: str, values: dict) -> None:
        results[name] = values
        places[name] = device_name(models.device) if name != "measure_speed" else "cpu"
        with atomic(partial) as temporary:
            temporary.write_text(json.dumps(results), encoding="utf-8")

    for guidance in recipe.report.guidance:
        if (name := f"guidance_{guidance:g}") not in results:
            models.guidance = guidance
            keep(name, dict(zip(("top1", "variety"), accuracy_and_variety(models), strict=True)))
    rows = {g: results[f"guidance_{g:g}"] for g in recipe.report.guidance}
    models.guidance = guidance_of({g: (row["top1"], row["variety"]) for g, row in rows.items()})
    for measure in MEASURES:
        if measure.__name__ not in results:
            keep(measure.__name__, measure(models))
    contact_sheet(models, out / "contact_sheet.png")
    report = {
        "weights_sha256": hashes,
        "recipe": recipe.name,
        "steps": recipe.report.steps,
        "precision": models.precision or "fp32",
        "guidance": models.guidance,
        "guidance_sweep": {f"{g:g}": row for g, row in rows.items()},
        "share_of_pictures": recipe.report.share,
        "torch": torch.__version__,
        "machine": f"{processor()} ({platform.machine()}), {torch.get_num_threads()} threads",
        "measured_on": places,
        "targets": {k: t for k, (_, t) in TARGETS.items() if t},
        "measures": {k: v for measure in MEASURES for k, v in results[measure.__name__].items()},
    }
    with atomic(out / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if folders["unet"].parent == out:  # a denoiser of this recipe, not the shipped one
        into_marks(folders["unet"] / "README.md", "findings", about(report))
    print(text_table(report))
    return report
