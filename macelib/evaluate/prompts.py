"""Prompts with seeds from a CSV as people have them (I2P, COCO-30k, MACE's lists), drawn here or over devices."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import MaceError, explained
from ..models.pipelines import elsewhere, load_again
from ..models.swap import untouched
from ..models.text import prompt_fits, shortened
from ..reading import read_table
from .pictures import Drawing, Job, file_of

log = logging.getLogger(__name__)
SEEDS = ("seed", "evaluation_seed", "sd_seed")
GUIDANCE = ("guidance", "evaluation_guidance", "sd_guidance_scale")
OWN = ("prompt", *SEEDS, *GUIDANCE)
MOST = 2**63  # seeds are smaller


@dataclass(frozen=True)
class Prompt:
    """One row: a picture to draw."""

    prompt: str
    seed: int
    guidance: float | None = None  # None: the file has none here
    columns: dict[str, str] = field(default_factory=dict)  # all other columns, as they stand there
    where: str = field(default="a prompt", compare=False)  # the file and the line


def read_prompts(path: str | Path) -> list[Prompt]:
    """Rows of a CSV: prompt, a seed (`SEEDS`), where there is one a guidance scale (`GUIDANCE`); others are kept.

    MaceError: a column that is missing (which, and the spellings that are known), or is there in two spellings; a seed
    that is no whole number; a file without rows.
    """
    try:
        rows = read_table(path, "prompts", *product(("prompt",), SEEDS))
    except MaceError as error:
        if "the columns must have" in str(error):
            raise _missing(path) from error
        raise
    if not rows:
        raise MaceError(f"{path} holds no prompts: give at least one row.")
    header = rows[0].value
    for known in (SEEDS, GUIDANCE):
        if len(twice := [name for name in known if name in header]) > 1:
            raise MaceError(f"{path} has the columns {' and '.join(twice)}, which say the same: keep one.")
    seed = next(name for name in SEEDS if name in header)
    guidance = next((name for name in GUIDANCE if name in header), None)
    found = []
    for where, row in rows:
        if not row.get("prompt"):
            raise MaceError(f"{where}: the prompt is empty.")
        scale = row.get(guidance, "") if guidance else ""
        others = {name: value for name, value in row.items() if name not in OWN}
        found.append(Prompt(row["prompt"], _seed(row.get(seed, ""), where), _guidance(scale, where), others, where))
    return found


def _missing(path) -> MaceError:
    """Which columns a file lacks."""
    found = []
    for needed in (("prompt",), SEEDS):
        try:
            read_table(path, "prompts", *((name,) for name in needed))
        except MaceError as error:
            if "the columns must have" not in str(error):
                return error
            found.append(needed)
    said = " and ".join(f"the {'seed' if needed is SEEDS else 'prompt'} ({' or '.join(needed)})" for needed in found)
    return MaceError(
        f"{path} has no column for {said or 'prompt and seed in one table'}. Known columns: prompt; "
        f"{', '.join(SEEDS)}; {', '.join(GUIDANCE)} (this one may be missing). Others are kept."
    )


def _seed(text: str, where: str) -> int:
    if not re.fullmatch(r"\d{1,40}(\.0*)?", text) or not (seed := int(text.partition(".")[0])) < MOST:
        raise MaceError(f"{where}: the seed is {text!r}; allowed: whole numbers from 0 to 2^63 - 1.")
    return seed


def _guidance(text: str, where: str) -> float | None:
    if not text:
        return None
    written = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text)
    if not written or not abs(value := float(text)) < float("inf"):
        raise MaceError(f"{where}: the guidance is {text!r}; allowed: a number, or nothing.")
    return value


def readable(pipe, prompts: Sequence[Prompt], cut: bool = False) -> list[Prompt]:
    """The rows as the model reads them: with `cut`, one that is too long ends with the last word that is read.

    MaceError for such a row unless `cut`: which is the first, and how many there are.
    """
    long = [row for row in prompts if not prompt_fits(pipe, row.prompt)]
    if not long:
        return list(prompts)
    many = f"{len(long)} of {len(prompts)} prompts"
    if not cut:
        raise MaceError(
            f"{many} are longer than the model reads, the first in {long[0].where}: shorten them, or have them cut at "
            "the last word that is read (--cut)."
        )
    log.warning("%s are longer than the model reads: they are cut.", many)
    return [replace(row, prompt=shortened(pipe, row.prompt)) for row in prompts]


@dataclass(frozen=True)
class Share:
    """A part of the pictures as a job of an engine: `call(*args)`."""

    key: str
    call: Callable[..., Any]
    args: tuple


def draw_prompts(
    pipe,
    prompts: Sequence[Prompt],
    folder: str | Path,
    drawing: Drawing | None = None,
    change=None,
    *,
    force: bool = False,
    engine=None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[list[int], list[Image.Image], list[Path]]]:
    """Rows (their numbers), their pictures and files, batch by batch; `change` (an erasure, an edit) is applied.

    A row without a guidance scale takes the drawing's. Pictures that the folder has are read: a call that was cut short
    goes on. engine (`macelib.batch.make_engine`): the pictures are drawn in processes of their own, a share for each
    that runs at once; the pipeline must come from `load_pipeline`. The pipeline is left as it was.
    MaceError: a prompt that is too long (`readable`); shares that failed, when the others are done.
    """
    drawing, state = drawing or Drawing(), "erased" if change else "original"
    prompts = readable(pipe, prompts)
    with untouched(pipe):
        if change is not None:
            change.apply(pipe, force)
        if engine is not None:
            _elsewhere(pipe, prompts, folder, drawing, change, force, engine, state)
        done = 0
        for scale, rows in _by_guidance(prompts).items():
            how = _with(drawing, scale)
            place = how.place(pipe, folder, state)
            for jobs, pictures in how.pictures(pipe, list(rows), folder, state):
                pairs = [(i, picture, job) for job, picture in zip(jobs, pictures, strict=True) for i in rows[job]]
                done += len(pairs)
                if progress:
                    progress(done, len(prompts))
                numbers, images, of = (list(column) for column in zip(*pairs, strict=True))
                yield numbers, images, [place / file_of(job) for job in of]


def _by_guidance(prompts: Sequence[Prompt]) -> dict[float | None, dict[Job, list[int]]]:
    """Numbers of the rows by guidance scale and (prompt, seed)."""
    found: dict[float | None, dict[Job, list[int]]] = {}
    for i, row in enumerate(prompts):
        found.setdefault(row.guidance, {}).setdefault((row.prompt, row.seed), []).append(i)
    return found


def _with(drawing: Drawing, guidance: float | None) -> Drawing:
    return drawing if guidance is None else replace(drawing, guidance=guidance)


def _elsewhere(pipe, prompts, folder, drawing: Drawing, change, force: bool, engine, state: str) -> None:
    """Draw what is missing by an engine's jobs."""
    how, todo = elsewhere(pipe), []
    for scale, rows in _by_guidance(prompts).items():
        kept = _with(drawing, scale).kept(pipe, folder, state)
        todo += [(scale, job) for job in rows if job not in kept]
    count = min(len(todo), engine.slots()) if todo else 0
    place, failed = drawing.place(pipe, folder, state).name, []
    what = how, change, force, drawing, str(folder), state, place
    shares = [Share(f"pictures {i + 1} of {count}", draw_share, (*what, todo[i::count])) for i in range(count)]
    for outcome in engine.run(shares):
        failed += [f"{outcome.key}: {outcome.error}"] if outcome.error else []
    if failed:
        raise MaceError(
            f"{len(failed)} of {count} shares failed ({'; '.join(failed)}); call again, the others are kept."
        )


def draw_share(
    how: tuple,
    change,
    force: bool,
    drawing: Drawing,
    folder: str,
    state: str,
    place: str,
    todo: Sequence[tuple[float | None, Job]],
) -> int:
    """Draw (guidance, job) pairs into the folder in a process of its own; how many. how: of `elsewhere`.

    MaceError: not the same model.
    """
    pipe = load_again(*how)
    if change is not None:
        change.apply(pipe, force)
    if drawing.place(pipe, folder, state).name != place:
        raise MaceError(
            f"{how[0]}, as it is loaded here, is not the caller's pipeline: use the same weights everywhere."
        )
    by: dict[float | None, list[Job]] = {}
    for scale, job in todo:
        by.setdefault(scale, []).append(job)
    with explained():
        for scale, jobs in by.items():
            for _ in _with(drawing, scale).pictures(pipe, jobs, folder, state):
                pass
    return len(todo)
