"""The presets' values, as plain numbers by kind of concept.

"paper" is the authors' run of MACE in this library's units, with templates of our own. "mini" was tuned on mini-SD.
"untested" has the paper's values, for kinds of models on which nobody has tried them. "best" is the preset of the
model's family, with what was chosen among further candidates (`BEST`) in place of some values.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import MaceError
from ..templates import COMPANIONS

PRESETS = ("paper", "mini", "untested", "best")
TITLES = {
    "paper": "the paper's settings with our templates",
    "mini": "settings tuned on mini-SD",
    "untested": "untested: the paper's settings with our templates, on a kind of model that nobody has tried them on",
    "best": "the best of the candidates that were tried on mini-SD, on names to choose settings by",
}
KINDS = ("object", "style", "celebrity", "explicit")
TASKS = {"objects": "object", "styles": "style", "celebrities": "celebrity", "explicit": "explicit"}
USUAL = {"object": 1, "style": 100, "explicit": 4}  # concepts of the paper's runs, where there is one number
Values = dict[str, Any]  # section -> field -> value, as in `EraseConfig.to_dict`
RANGES = {  # the least of a number; or the least and the largest; or the least and what it is below
    "prior.lambda3": 0, "prior.beside": 0, "prior.influence": 0, "refine.lambda0": 0, "refine.lambda1": 0,
    "refine.weight": 0, "refine.rounds": 0, "refine.gamma": 0, "fuse.lambda0": 0, "fuse.lambda2": 0,
    "fuse.null_space": (0, 1), "images.count": 1, "images.steps": 1, "images.batch": 1, "seed": 0, "train.rank": 1,
    "train.steps": 1, "train.lr": 0, "train.until": (0, 1, "below"), "train.concepts_per_pass": 1, "train.clip": 0,
    "train.t1": (0, 999), "train.t2": (0, 999), "train.gamma": 1e-6,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a preset's values depend on besides the kind of a concept."""

    count: int = 1  # n, all concepts of the run
    objects: int = 1  # how many of them are objects
    name: str = ""  # of the object, where it is the only one
    kept: int = 3000  # N_d, prompts of the domain: the hundred retained names by thirty templates
    named: bool = False  # whether names to keep are said, whose own tokens count
    base: str = "mini"  # the preset of the model's family, which "best" changes


def title(preset: str | None, marks: Iterable[str] = ()) -> str:
    """Which preset settings are of, and what sets them apart from it, in words."""
    return "; ".join([TITLES[preset or "mini"], *marks])


def values(preset: str, kind: str, run: Run | None = None) -> Values:
    """The values of a preset for one kind of concept."""
    run = run or Run()
    if preset == "best":
        return merged(values(run.base, kind, run), chosen(kind))
    return mini(kind, run) if preset == "mini" else paper(kind, run, preset == "untested")


# --- best ------------------------------------------------------------------------------------------------------------
# By kind of concept, the point of data/world/best.yaml that was chosen, as it stands there: of `alone` for "object", of
# `together` for "celebrity"; a kind that is not named takes that of "object". {} for a kind: the preset as it is.

BEST: Mapping[str, Values] = {}
HOW = "mace study tuning --grid data/world/best.yaml --seeds 3 --steps 8 --autocast bf16 --record --out runs/study/best"
NONE: Values = {  # none of the candidates
    "written": "kv",
    "prior": {"influence": 0.0},
    "refine": {"rounds": 0, "gamma": 1e-3},
    "train": {"down": "free", "until": 0.0},
    "fuse": {"null_space": 1.0},
}


def check_best() -> None:
    """MaceError while nothing is chosen for the preset "best"."""
    if not BEST:
        raise MaceError(
            f"Nothing has been chosen for the preset 'best' yet: its candidates are measured by `{HOW}`, and the "
            "points that are chosen go into BEST in macelib/presets/values.py."
        )


def chosen(kind: str) -> Values:
    """What "best" changes for a kind of concept; MaceError while nothing is chosen."""
    check_best()
    return BEST.get(kind, BEST.get("object", {}))


def merged(row: Values, changes: Values) -> Values:
    """A row with other values, at any depth."""
    own = {
        name: merged(row.get(name, {}), value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return {**row, **own}


# --- paper -----------------------------------------------------------------------------------------------------------
# Theirs are sums over captions, ours means per caption and concept: with n concepts, N captions and N_d domain prompts
# λ0 = lamb / n, λ1 = s1² N / n (their code multiplies by s1 twice), λ2 = s3 N / n, λ3 = w N_d / N.

N = 616_767  # captions of COCO 2014, train and val
SINGLE = {"automobile": 100.0, "bird": 10.0, "ship": 1000.0}  # lamb of one object; the other seven are not published
LAMB = 100.0  # of another object (ours)
S1 = {"object": 1e-4, "celebrity": 1e-4, "style": 1e-4, "explicit": 7e-7}  # train_preserve_scale
S3 = S1  # fuse_preserve_scale
W = {1: 8e3, 5: 5e4, 10: 8e4, 100: 2e5}  # preserve_weight of celebrities by their number; between: linear in log n
W_STYLE = 8e4
LR = {"object": 1e-5, "celebrity": 1e-4, "style": 1e-4, "explicit": 1e-5}


def paper(kind: str, run: Run, untested: bool = False) -> Values:
    """The authors' run. Outside its rows (ours): several objects take the λ's of celebrities, for objects alone have no
    prior; w is interpolated."""
    explicit = kind == "explicit"
    own = {
        "templates": "paper-like",
        "companions": COMPANIONS if untested else (),
        "prior": {
            "captions": "coco", "named": "kept", "repeats": True, "tokens": "all",
            "lambda3": weight_of(kind, run) * run.kept / N, "beside": float(untested),
        },
        "refine": lambdas(kind, run, "lambda1", S1[kind] ** 2) | {"weight": 1.0},
        "images": {
            "count": 8, "steps": 30, "fallback": ("full",),
            **({"scheduler": "own"} if untested else {"scheduler": "dpm++", "guidance": 7.5}),
            "masks": "full" if kind == "style" else "attention" if untested else "grounding",
        },
        "train": {
            "rank": 1, "D": "unit", "steps": 120 if explicit else 50, "lr": LR[kind],
            "timesteps": "uniform" if explicit else "cfis", "t1": 200, "t2": 400, "gamma": 0.05,
            "loss": "norm", "S": "own+tail", "prompt": "template", "mask": "nearest",
            # The authors' pictures are normalised as for ImageNet before the VAE, and their latents sampled: a mistake
            # that is not repeated here.
            "latents": "mean",
            "clip": 1.0, "concepts_per_pass": 8,
            # The same result. At the size of SD v1.4 a concept in a pass takes 0.4 GB, not 1.5, and a third more time.
            "gradient_checkpointing": True,
        },
        "fuse": lambdas(kind, run, "lambda2", S3[kind]),
    }  # fmt: skip
    return merged(own, NONE)


def lambdas(kind: str, run: Run, prior: str, scale: float) -> Values:
    """λ0 and the weight of the prior, in our units."""
    if kind == "object" and run.objects == 1:
        return {"lambda0": SINGLE.get(run.name.lower(), LAMB) / run.count, prior: 0.0}
    return {"lambda0": 0.0, prior: scale * N / run.count}


def weight_of(kind: str, run: Run) -> float:
    """w, of a domain prompt beside a caption."""
    if kind == "explicit" or (kind == "object" and run.objects == 1):
        return 0.0
    if kind == "style":
        return W_STYLE
    known = sorted(W)
    n = min(max(run.count, known[0]), known[-1])
    low, high = max(m for m in known if m <= n), min(m for m in known if m >= n)
    share = 0.0 if low == high else math.log(n / low) / math.log(high / low)
    return (1 - share) * W[low] + share * W[high]


# --- mini ------------------------------------------------------------------------------------------------------------
# `weight` multiplies a concept's statistics (X, G, C) in Eq. 2 and Eq. 7 where there are names to keep: these hold few
# directions, general captions hold many, and so much less of a prior is needed. Prior and ridge count anew for each
# concept (the ridge by its weight), so that what a concept meets does not depend on how many go with it, and R does not
# grow in directions that hold next to nothing.
# All of these values were found in an earlier world, with other pictures, captions, text tower and denoiser. Some are
# tried again on names of data/world/split.json: in data/world/tuning.yaml of one object lr, λ1 and λ2, companions and
# their weight, of many concepts D, lr, `weight` and λ3; in cheaper.yaml steps and masks of training pictures. In no
# grid are both λ0, the rates of styles and of explicit content, `loss`, `S`, `prompt`, `mask`, `fallback`, `count`,
# `clip` and the number of training steps; rank, t1, t2 and γ are the paper's. Objects were tuned there on wolf,
# rocket, castle, pizza and penguin, alone and together. All but penguin are names of protocols now (mini-scaling,
# mini-unsafe), castle and pizza companions of mini-two-things, too. Celebrities were tuned by `mace study tuning`, a
# hundred concepts beside a hundred kept that no protocol asked for, after they had been looked for on the characters'
# protocol with exchanged roles, the hundred that it keeps erased: the same names, not its erasure.
# A celebrity's D is its own tokens' ("own") and B alone is learned, at a high rate: beside a hundred others, and names
# to keep, fusion leaves a third to a half of what D answers to them.
# Companions, the weight of their pairs, and which tokens of prompts of two stage 3 counts were compared on names that
# settings may be chosen on (`mace study pairs --tuning --steps 8 --autocast bf16`, five seeds; the runs are in
# data/studies/pairs/tuning.csv). Where stage 3 changed companions, too, more of them were lost the more prompts of two
# there were; with the companion's own tokens left out, differences to no companions at all stay within the intervals.
MINI_COMPANIONS = ("kangaroo", "snowman", "laptop", "mushroom", "sheep", "candle", "tulip", "telephone")
KEPT = 250.0  # λ3 of names to keep beside many concepts: together they count as much as 250 times the captions
# An object's training pictures take eight steps, and their masks come out of the same passes: of the cheaper settings
# in data/world/cheaper.yaml it is the first whose H_c is not below the interval of 25 steps and passes for the masks
# (data/studies/tuning-cheaper), at two fifths of the time.
CHEAPER = {"steps": 8, "masks": "drawing"}
MINI_TRAIN: Mapping[str, Values] = {
    "object": {"lr": 3e-3},
    "style": {"lr": 1e-3},
    "celebrity": {"D": "own", "lr": 5e-2},
    "explicit": {"lr": 3e-3},
}


def mini(kind: str, run: Run) -> Values:
    """The values that were tuned on mini-SD."""
    many = kind == "celebrity"
    own = {
        "templates": "ours",
        "companions": MINI_COMPANIONS,
        "prior": {
            "captions": "builtin", "named": "left out", "repeats": False, "tokens": "own",
            "lambda3": KEPT if many and run.named else 1.0, "beside": 1.0,
        },
        "refine": {"lambda0": 1.0, "lambda1": 50.0, "weight": 130.0 if many else 1.0},
        "images": {
            "count": 8, "steps": 25, "scheduler": "own", "fallback": ("attention", "full"),
            "masks": "full" if kind == "style" else "attention",
            **(CHEAPER if kind == "object" else {}),
        },
        "train": {
            "rank": 1, "D": "scaled", "steps": 50, "timesteps": "cfis", "t1": 200, "t2": 400, "gamma": 0.05,
            "loss": "squared", "S": "own", "prompt": "sample", "mask": "soft", "latents": "mean",
            "clip": 1.0, "concepts_per_pass": 8, "gradient_checkpointing": False,
        } | MINI_TRAIN[kind],
        "fuse": {"lambda0": 2.0, "lambda2": 50.0},
    }  # fmt: skip
    return merged(own, NONE)
