"""Running an attack: what is attacked and its controls, one row for each thing tried, kept and gone on from."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..baselines import Hook
from ..baselines.registry import source
from ..concepts import Concept, sample_prompt
from ..errors import MaceError
from ..files import hash_tensors, hash_text, locked, name_of, read_checked, sources_hash, write_checked
from ..models.entrances import denoiser, text_weights
from ..models.sample import check_drawing, encode_images
from ..models.swap import applied, applied_edit, base_hash, untouched
from ..models.tokens import occurrences
from ..reading import build_settings
from .registry import Attack, named
from .scene import Passes, Scene, check, reads_prompts

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
        """Percent of the rows whose un-attacked picture shows the concept; None without rows that have one."""
        return _percent([row for row in self.rows if row["pre"] is not None], "pre")

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
    prompts: that name the concept; its sample prompt unless given. pictures: of the concept, where an attack needs
    them; unless given, those of eight by the original model that the judge recognises, if any. settings: of the
    attack's class, or some of its fields.
    A row per (prompt, seed, variant): pre: recognised without an attack, in a picture of the prompt `before` by the
    attack's own sampler (`Attack.worded`: None); success: pre, or found; z0: how many pictures of the concept the
    attack had, if any; budget and seconds: what was spent on the prompt and seed up to there.
    folder: keeps rows, and goes on from them, for the same judge (`judge_key`) and the same source of all attacks.
    The pipeline is left as it was. What an attack refuses of a foreign name is not measured, in its words; nor is a
    defence that the attack would not see (`_unseen`).
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
    if bad := [prompt for prompt in prompts if not occurrences(prompt, concept.name)]:
        raise MaceError(f"The prompt {bad[0]!r} does not name {concept.name!r}.")
    own = "original" if erasure is None else erasure.title
    method = control if control in ("original", "never-knew") else own
    every = {"attack": name, "control": control, "method": method}
    about = {**every, "concept": concept.name}
    if why := _missing(chosen, control, erasure, pictures, never):
        return _left(every, why)
    drawing = {"steps": steps, "guidance": guidance, "batch": batch}
    with untouched(pipe):
        whole = dict(pipe=pipe, concept=concept, prompts=prompts, seeds=seeds, foreign=control == "foreign", **drawing)
        counted = [chosen.best_of(settings)] if control == "no-attack" else []
        asked = json.dumps([about, dataclasses.asdict(settings), drawing, prompts, *counted])
        key = hash_text(asked, base_hash(pipe), source(chosen.prepare), sources_hash(__package__))
        target = pipe if control != "never-knew" else never
        edited = erasure is not None and control not in ("original", "never-knew")
        with applied(pipe, erasure) if edited else nullcontext():
            edit = getattr(applied_edit(pipe), "key", "")
            key = hash_text(key, hash_tensors(text_weights(denoiser(target))), edit, *map(_bytes, pictures))
            key = hash_text(key, judge_key(judge))
        store = _Store(folder, f"{name}-{control}-{name_of(concept.name)}", key)
        with store.alone():
            jobs = [(p, s) for p in prompts for s in seeds if (p, s) not in store.done]
            scene = Scene(**whole)
            if jobs and chosen.pictures and control != "no-attack":
                scene = dataclasses.replace(scene, latents=_latents(scene, pictures, judge))
                if scene.latents is None:
                    return _left(about, "the judge recognises it in none of the original model's pictures")
            try:
                run = chosen.prepare(scene, settings) if jobs else None
            except MaceError as error:
                if control != "foreign":
                    raise
                return _left(about, str(error))
            with applied(pipe, erasure) if edited else nullcontext():
                for prompt, seed in jobs:
                    scene = dataclasses.replace(scene, pipe=target, passes=Passes())
                    store.add(prompt, seed, _job(scene, run, chosen, settings, judge, about, prompt, seed))
                    if progress:
                        progress(name, len(store.done), len(prompts) * len(seeds), f"{concept.name}, seed {seed}")
        rows = [row for p in prompts for s in seeds for row in store.done[p, s]]
        if why := chosen.lacks(settings, control):
            return Result(rows) + _left(every, why)
        return Result(rows) if rows else _left(about, "the attack tried nothing")


def _left(about: Mapping[str, str], why: str) -> Result:
    """What was not measured."""
    return Result(not_measured=[{**about, "metric": "ASR", "why": why}])


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
    return _unseen(chosen, getattr(erasure, "change", None)) if control in ("none", "foreign") else ""


def _unseen(chosen: Attack, change) -> str:
    """Why an attack would pass by a hook, so that its rate would flatter the defence; "" where it does not."""
    if not isinstance(change, Hook):
        return ""
    if chosen.embeds and reads_prompts(change):
        return "the defence reads the prompt's words, and this attack has states that no words have led to"
    if chosen.pictures and change.overrides("negative") and not change.overrides("eps"):
        return "the defence is in the unconditional branch alone, and this attack's loss is of the conditional one"
    return ""


def _latents(scene: Scene, pictures: Sequence[Image.Image], judge) -> Tensor | None:
    """z0 of given pictures, or of those by the original model that the judge recognises; None where there is none."""
    if not pictures:
        seeds = [10_000 + i for i in range(8)]  # none that a row is drawn with
        drawn = scene.draw(sample_prompt(scene.concept), seeds)
        names = judge.top1(drawn)
        pictures = [picture for picture, name in zip(drawn, names, strict=True) if name == scene.concept.name]
    return encode_images(scene.pipe, pictures) if pictures else None


def _job(scene: Scene, run, chosen: Attack, settings, judge, about: dict, prompt: str, seed: int) -> list[dict]:
    """The rows of one prompt and seed."""
    name, told = scene.concept.name, partial(_row, about, scene, time.perf_counter())

    def seen(images) -> bool:
        return name in judge.top1(images)

    def plain(seeds) -> list[Image.Image]:
        with chosen.plain(scene, settings) as unattacked:
            return unattacked.draw(prompt, seeds)

    if about["control"] == "no-attack":
        seeds = [seed + i * 1_000_003 for i in range(chosen.best_of(settings))]
        shown = [seen([picture]) for picture in plain(seeds)]
        return [told(prompt, seed, prompt, shown[0], any(shown), f"un-attacked, best of {len(shown)}")]
    before, pre = (None, None) if chosen.worded else (prompt, seen(plain([seed])))
    if chosen.search and pre:
        return [told(prompt, seed, before, pre, pre, "un-attacked")]
    rows = []
    with closing(run(scene, prompt, seed)) as tries:  # what it has put into the model is gone, whatever happens
        for found in tries:
            if found.plain:
                before, pre = found.prompt, seen(found.pictures)
                continue
            success = seen(found.pictures) or bool(pre)
            rows.append(told(found.prompt, seed, before, pre, success, found.variant, found.token))
            if chosen.search and success:
                break
    return rows[-1:] if chosen.search else rows


def _row(about, scene: Scene, began: float, prompt, seed, before, pre, success, variant, token="") -> dict:
    row = {**about, "seed": seed, "variant": variant, "prompt": prompt, "token": token}
    row |= {"before": before, "pre": pre, "success": success}
    row |= {} if scene.latents is None else {"z0": len(scene.latents)}
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
