"""The quality table: what is measured, what is aimed at, and the table in the README that `report` keeps up to date."""

from __future__ import annotations

from pathlib import Path

from macelib.files import data_folder, into_marks

STEPS = 25  # of denoising, in the time of 16 pictures, and in the other measures unless told otherwise
TARGETS = {  # measure: (what it is, target)
    "judge_renderings": ("judge, top-1 on fresh renderings, all concepts", ">= 0.98"),
    "objects": ("ten objects, 50 pictures each, judge's top-1 among the ten", ">= 0.96"),
    "objects_strict": ("the same, top-1 among all concepts", ""),
    "synonyms": ("their three synonyms each, 20 pictures each, top-1 among the ten", ">= 0.80"),
    "concepts_mean": ("all concepts, 8 pictures each: mean top-1", ">= 0.88"),
    "concepts_above_75": ("all concepts: share above 75 %", ">= 0.85"),
    "people": ("characters and faces, 8 pictures each: mean top-1", ">= 0.90"),
    "styles": ("style named in the prompt, judge's style head", ">= 0.90"),
    "two_concepts": ("two-concept prompts of the 40 companions: both found in the halves", ">= 0.60"),
    "two_concepts_any": ("the same of any two concepts", ""),
    "clip_objects": ("mini-CLIP zero-shot among the ten objects, on renderings", ">= 0.98"),
    "clip_concepts": ("mini-CLIP zero-shot among all concepts, on renderings", ">= 0.90"),
    "residual_route": ("concept's own tokens replaced by [EOS]'s embedding, top-1 over 50 concepts", "0.40 to 0.90"),
    "own_route": ("only the concept's tokens, the rest from the empty prompt", ">= 0.60"),
    "seconds_16": (f"seconds for 16 pictures, {STEPS} steps, guidance", "<= 12"),
    "memory_gb": ("peak memory of that, GB", "<= 2"),
    "vae_psnr": ("autoencoder's round trip, PSNR in dB", ">= 28"),
}


def missed(value: float, target: str) -> str:
    """ ", missed" where a measured value is not what the target says, else nothing."""
    match target.split():
        case [">=", low]:
            reached = value >= float(low)
        case ["<=", high]:
            reached = value <= float(high)
        case [low, "to", high]:
            reached = float(low) <= value <= float(high)
        case _:
            reached = True
    return "" if reached else ", missed"


def text_table(report: dict) -> str:
    """A line per measure, for the terminal."""
    values = report["measures"]
    return "\n".join(
        f"{what:80} {values[k]:8.3f}   {target}{missed(values[k], target)}" for k, (what, target) in TARGETS.items()
    )


def readme_table(report: dict) -> str:
    """The table in Markdown, with what it was measured by."""
    values, share = report["measures"], report["share_of_pictures"]
    rows = [
        f"| {what} | {target} | {values[k]:.3g}{missed(values[k], target)} |" for k, (what, target) in TARGETS.items()
    ]
    how = "" if share == 1 else f", with {100 * share:.0f} % of the pictures that the table names"
    gpus = sorted(set(report.get("measured_on", {}).values()) - {"cpu"})
    where = f", pictures drawn on an {' and an '.join(gpus)}" if gpus else ""
    said = (
        f"Measured by `python -m factory report --steps {report['steps']} --guidance {report['guidance']:g}`,"
        f" in {report['precision']}, on {report['machine']}{where}{how}."
    )
    return "\n".join(["| Measure | Aim | Measured |", "|---|---|---|", *rows, "", said])


def into_readme(report: dict, path: Path | None = None) -> bool:
    """Put the table between its marks in the README of a checkout; False where there is no such place."""
    return into_marks(path or data_folder().parent / "README.md", "report", readme_table(report))
