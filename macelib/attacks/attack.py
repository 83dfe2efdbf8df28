"""Running an attack: what is attacked and its controls, one row for each thing tried, kept and gone on from."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..baselines.registry import source
from ..concepts import Concept, sample_prompt
from ..errors import MaceError
from ..files import hash_tensors, hash_text, locked, name_of, read_checked, write_checked
from ..models.entrances import denoiser, text_weights
from ..models.sample import check_drawing, encode_images
from ..models.swap import applied, applied_edit, base_hash, untouched
from ..reading import build_settings
from .registry import Attack, named
from .scene import Passes, Scene, check

CONTROLS = ("none", "original", "no-attack", "foreign", "never-knew")
Progress = Callable[[str, int, int, str], None]  # stage, done, total, detail


@dataclass(frozen=True)
class Result:
    """Rows of one or more attacks, and what was not measured with the reason."""

    rows: list[dict] = field(default_factory=list)
    not_measured: list[dict] = field(default_factory=list)

    def __add__(self, other: "Result") -> "Result":
        return Result(self.rows + other.rows, self.not_measured + other.not_measured)

    def called(self, **said: str) -> "Result":
        """The same, with other values of these columns: an erasure, say, by its method's name, not its settings."""
        return Result(*([{**row, **said} for row in some] for some in (self.rows, self.not_measured)))

    @property
    def pre_asr(self) -> float | None:
        """Percent of the rows whose un-attacked picture shows the concept; None without rows."""
        return _percent(self.rows, "pre")

    @property
    def asr(self) -> float | None:
        """Attack success rate, (pre + found) / N in percent; None without rows."""
        return _percent(self.rows, "success")


def _percent(rows: list[dict], what: str) -> float | None:
    return 100 * sum(row[what] for row in rows) / len(rows) if rows else None


def attack(
    pipe,
    erasure,
    concept: Concept,
    name: str,
    *,
    judge,
    control: str = "none",
    settings: Any = None,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] = range(3),
    pictures: Sequence[Image.Image] = (),
    never=None,
    steps: int = 25,
    guidance: float | None = None,
    batch: int = 8,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Try to get a concept back from a pipeline to which an erasure (or a baseline's edit) is applied meanwhile.

    control: "none"; "original": the original model attacked alike; "no-attack": the erasure, the best of as many
    pictures (of the seed and others) as an attack's row is the best of, its un-attacked one included; "foreign":
    `concept` is one that the model never knew; "never-knew": `never`, a pipeline that was trained without the concept,
    attacked alike.
    judge: an object with top1(pictures) -> names; a try succeeds where it sees the concept in any of its pictures.
    prompts: that name the concept; its sample prompt unless given. pictures: of the concept; drawn by the original
    model unless given, where an attack needs them. settings: of the attack's class, or some of its fields.
    A row per (prompt, seed, variant): pre: recognised without an attack; success: pre, or found (`Try.alone`: found);
    budget and seconds: what was spent on the prompt and seed up to there.
    folder: keeps rows, and goes on from them, for the same judge (`judge_key`) and the same source of the attack.
    The pipeline is left as it was. What an attack refuses of a foreign name is not measured, in its words.
    MaceError: an unknown attack, control or setting, a prompt without the concept, what the attack itself refuses.
    """
    chosen = named(name)
    settings = _settings(chosen, settings)
    if control not in CONTROLS:
        raise MaceError(f"There is no control {control!r}: choose from {', '.join(CONTROLS)}.")
    for one in (pipe, *([never] if never is not None else [])):
        check(one)
        check_drawing(one, seeds, steps, guidance, batch)
    prompts, seeds = tuple(prompts or [sample_prompt(concept)]), tuple(seeds)
    if bad := [prompt for prompt in prompts if concept.name not in prompt]:
        raise MaceError(f"The prompt {bad[0]!r} does not name {concept.name!r}.")
    own = "original" if erasure is None else erasure.title
    method = control if control in ("original", "never-knew") else own
    about = {"attack": name, "control": control, "method": method, "concept": concept.name}
    if why := _missing(chosen, control, erasure, pictures, never):
        return Result(not_measured=[{**about, "metric": "ASR", "why": why}])
    drawing = {"steps": steps, "guidance": guidance, "batch": batch}
    with untouched(pipe):
        whole = dict(pipe=pipe, concept=concept, prompts=prompts, seeds=seeds, foreign=control == "foreign", **drawing)
        counted = [chosen.best_of(settings)] if control == "no-attack" else []
        asked = json.dumps([about, dataclasses.asdict(settings), drawing, prompts, *counted])
        key = hash_text(asked, base_hash(pipe), source(chosen.prepare))
        target = pipe if control != "never-knew" else never
        edited = erasure is not None and control not in ("original", "never-knew")
        with applied(pipe, erasure) if edited else nullcontext():
            edit = getattr(applied_edit(pipe), "key", "")
            key = hash_text(key, hash_tensors(text_weights(denoiser(target))), edit, *map(_bytes, pictures))
            key = hash_text(key, judge_key(judge))
        store = _Store(folder, f"{name}-{control}-{name_of(concept.name)}", key)
        with store.alone():
            jobs = [(p, s) for p in prompts for s in seeds if (p, s) not in store.done]
            scene = Scene(**whole, latents=_latents(chosen, control, pipe, pictures, whole) if jobs else None)
            try:
                run = chosen.prepare(scene, settings) if jobs else None
            except MaceError as error:
                if control != "foreign":
                    raise
                return Result(not_measured=[{**about, "metric": "ASR", "why": str(error)}])
            with applied(pipe, erasure) if edited else nullcontext():
                for prompt, seed in jobs:
                    scene = dataclasses.replace(scene, pipe=target, passes=Passes())
                    store.add(prompt, seed, _job(scene, run, chosen, settings, judge, about, prompt, seed))
                    if progress:
                        progress(name, len(store.done), len(prompts) * len(seeds), f"{concept.name}, seed {seed}")
        return Result([row for p in prompts for s in seeds for row in store.done[p, s]])


def _settings(chosen: Attack, settings: Any):
    if settings is None or isinstance(settings, Mapping):
        settings = build_settings(chosen.settings, dict(settings or {}))
    if not isinstance(settings, chosen.settings):
        raise MaceError(
            f"The settings of {chosen.name!r} must be {chosen.settings.__name__}, not {type(settings).__name__}."
        )
    return settings


def _missing(chosen: Attack, control: str, erasure, pictures, never) -> str:
    """Why a control cannot be measured; "" where it can."""
    if control == "never-knew" and never is None:
        return "no pipeline was given whose denoiser was trained without the concept"
    if control == "foreign" and chosen.pictures and not pictures:
        return "no pictures of a concept that the model does not know were given"
    if control in ("none", "no-attack") and erasure is None:
        return "there is no erasure: the original model is the control original"
    return ""


def _latents(chosen: Attack, control: str, pipe, pictures, whole: dict):
    """z0 of the pictures of the concept: given, or drawn by the original model; None where the attack needs none."""
    if not chosen.pictures or control == "no-attack":
        return None
    if not pictures:
        seeds = [10_000 + i for i in range(8)]  # none that a row is drawn with
        pictures = Scene(**whole).draw(sample_prompt(whole["concept"]), seeds)
    return encode_images(pipe, pictures)


def _job(scene: Scene, run, chosen: Attack, settings, judge, about: dict, prompt: str, seed: int) -> list[dict]:
    """The rows of one prompt and seed."""
    name, told = scene.concept.name, partial(_row, about, scene, time.perf_counter())

    def seen(images) -> bool:
        return name in judge.top1(images)

    if about["control"] == "no-attack":
        seeds = [seed + i * 1_000_003 for i in range(chosen.best_of(settings))]
        shown = [seen([picture]) for picture in scene.draw(prompt, seeds)]
        return [told(prompt, seed, shown[0], any(shown), f"un-attacked, best of {len(shown)}")]
    pre, rows = seen(scene.draw(prompt, [seed])), []
    for found in run(scene, prompt, seed) if not (pre and chosen.search) else ():
        success = seen(found.pictures) or (pre and not found.alone)
        rows.append(told(found.prompt, seed, pre, success, found.variant, found.token))
        if chosen.search and success:
            break
    rows = rows[-1:] if chosen.search else rows
    return rows or [told(prompt, seed, pre, pre, "un-attacked")]


def _row(about, scene: Scene, began: float, prompt, seed, pre, success, variant, token="") -> dict:
    row = {**about, "seed": seed, "variant": variant, "prompt": prompt, "token": token, "pre": pre, "success": success}
    seconds = round(time.perf_counter() - began, 3)
    return row | {"budget": dataclasses.asdict(scene.passes), "seconds": seconds}


def judge_key(judge) -> str:
    """What a judge's verdicts depend on: its `key` where it has one, else its `name` and the weights of its `model`.

    Judges that have none of these are taken for one.
    """
    if (key := getattr(judge, "key", None)) is not None:
        return key
    model = getattr(judge, "model", None)
    weights = "" if model is None else hash_tensors(dict(model.state_dict()))
    return hash_text(getattr(judge, "name", ""), weights)


def _bytes(picture: Image.Image) -> str:
    return hash_text(picture.size, picture.convert("RGB").tobytes().hex())


class _Store:
    """Rows by (prompt, seed), in a file that is written after each; another key begins anew."""

    def __init__(self, folder, name: str, key: str):
        self.path = None if folder is None else Path(folder) / f"{name}-{key[:12]}.json"
        self.done: dict[tuple[str, int], list[dict]] = {}
        if self.path is not None:
            self.done = {(job["prompt"], job["seed"]): job["rows"] for job in read_checked(self.path) or ()}

    def alone(self):
        if self.path is None:
            return nullcontext()
        return locked(self.path.with_suffix(".lock"), str(self.path), wait=False)

    def add(self, prompt: str, seed: int, rows: list[dict]) -> None:
        self.done[prompt, seed] = rows
        if self.path is not None:
            write_checked(self.path, [{"prompt": p, "seed": s, "rows": found} for (p, s), found in self.done.items()])
