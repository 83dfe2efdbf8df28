"""The quality table: what is measured, what is aimed at, and the table in the README that `report` keeps up to date."""

from __future__ import annotations

from pathlib import Path

from macelib.files import data_folder, into_marks

TARGETS = {  # measure: (what it is, its floor where two CPU cores trained the world)
    "judge_renderings": ("judge, top-1 on fresh renderings, all concepts", ">= 0.98"),
    "objects_strict": ("ten objects, 50 pictures each, judge's top-1 among all concepts", ">= 0.90"),
    "objects": ("ten objects, top-1 among the ten", ""),
    "synonyms_strict": ("their three synonyms each, 20 pictures each, top-1 among all concepts", ">= 0.75"),
    "synonyms": ("synonyms of the ten, top-1 among the ten", ""),
    "concepts_mean": ("all concepts, 8 pictures each: mean top-1", ">= 0.80"),
    "concepts_above_75": ("all concepts: share above 75 %", ">= 0.65"),
    "people": ("characters and faces, 8 pictures each: mean top-1", ">= 0.80"),
    "styles": ("style named in the prompt, judge's style head", ">= 0.75"),
    "artists_entropy": ('artists among 40 pictures of "a photo of the {}", 30 concepts: entropy / log 4', ">= 0.60"),
    "two_concepts": ("two-concept prompts of the 40 companions: both found in the halves", ">= 0.40"),
    "two_concepts_any": ("the same of any two concepts", ""),
    "clip_objects": ("mini-CLIP zero-shot among the ten objects, on renderings", ">= 0.95"),
    "clip_concepts": ("mini-CLIP zero-shot among all concepts, on renderings", ">= 0.75"),
    "residual_route": ("concept's own tokens replaced by [EOS]'s embedding, top-1 over 50 concepts", ""),
    "own_route": ("only the concept's tokens, the rest from the empty prompt", ""),
    "seconds_16": ("seconds for 16 pictures, 25 steps, guidance", "<= 12"),
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
        case _:
            reached = True
    return "" if reached else ", missed"


def rows_of(report: dict) -> list[tuple[str, str, float]]:
    """(what, floor, value) of every measure that a report has."""
    values = report["measures"]
    return [(what, target, values[k]) for k, (what, target) in TARGETS.items() if k in values]


def text_table(report: dict) -> str:
    """A line per measure, for the terminal."""
    return "\n".join(f"{what:82} {value:8.3f}   {t}{missed(value, t)}" for what, t, value in rows_of(report))


def readme_table(report: dict) -> str:
    """The table in Markdown, with how it was measured."""
    rows = [f"| {what} | {target} | {value:.3g}{missed(value, target)} |" for what, target, value in rows_of(report)]
    gpus = sorted(set(report.get("measured_on", {}).values()) - {"cpu"})
    where = f", pictures drawn on an {' and an '.join(gpus)}" if gpus else ""
    said = (
        f"{report['steps']} steps at guidance {report['guidance']:g}, in {report['precision']}, "
        f"on {report['machine']}{where}."
    )
    return "\n".join(["| Measure | Floor | Measured |", "|---|---|---|", *rows, "", said])


def into_readme(report: dict, path: Path | None = None) -> bool:
    """Put the table between its marks in the README of a checkout; False where there is no such place."""
    return into_marks(path or data_folder().parent / "README.md", "report", readme_table(report))
