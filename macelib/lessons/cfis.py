"""Lesson 04: when a concept is decided, training watched live, and ways to draw the training timestep compared."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from ..concepts import Concept
from ..errors import MaceError
from ..evaluate.metrics import wilson
from ..method.fuse import Fusion
from ..method.lora.train import Example, Loras, Record, TrainConfig, example, train
from ..method.masks import drawn_and_read, make_masks
from ..models.pipelines import guidance_option
from ..models.sample import generate
from ..models.text import encode, tokenizers
from ..models.tokens import token_spans
from ..show.viz import COLORS, Figure
from ..templates import fill
from .shared import TEMPLATE, beside, choices, fast, panels, series, written


def swap(pipe, first: str, then: str, step: int, seeds: Sequence[int], **drawing) -> list[Image.Image]:
    """Pictures that begin with the prompt `first` and go on with `then` from a denoising step (0: `then` alone)."""
    new = encode(pipe, [then])  # (1, T, d)

    def change(_, i, t, values):
        if i + 1 != step:
            return {}
        e, n = values["prompt_embeds"].clone(), len(values["latents"])
        e[-n:] = new.to(e)  # the half without a prompt stands before
        return {"prompt_embeds": e}

    inputs = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    with fast(pipe):
        return generate(pipe, first if step else then, seeds, **drawing, **inputs)


def swaps(
    pipe, judge, pairs: Sequence[Sequence[str]], points: Sequence[int], seeds: Sequence[int], steps: int, **drawing
) -> tuple[pd.DataFrame, dict]:
    """Every (first, then) pair of names, swapped at every point: a table (pair, step, timestep, first, then: shares of
    pictures in which the judge sees it) and the pictures by pair and point. timestep: at which `then` takes over.

    MaceError: a name that the judge does not know."""
    judge.check([name for pair in pairs for name in pair])
    rows, pictures = [], {}
    for first, then in pairs:
        for k in points:
            texts = (fill(TEMPLATE, name) for name in (first, then))
            images = swap(pipe, *texts, k, seeds, steps=steps, **drawing)
            found = judge.top1(images, choices(judge, beside([n for pair in pairs for n in pair])))
            pipe.scheduler.set_timesteps(steps)
            t = int(pipe.scheduler.timesteps[k]) if k < steps else 0
            seen = {role: found.count(name) / len(found) for role, name in (("first", first), ("then", then))}
            rows.append({"pair": f"{first} → {then}", "step": k, "timestep": t, **seen})
            pictures[f"{first} → {then}", k] = images
    return pd.DataFrame(rows), pictures


def window(
    timesteps: Sequence[float], share: Sequence[float], low: float = 0.25, high: float = 0.75
) -> tuple[int, int] | None:
    """(t1, t2): the timesteps between which the share of the first concept rises from `high` down to `low`.

    Swapped later than t1 (smaller t) the first concept stays, earlier than t2 it gives way. Shares are taken as parts
    of the largest one, made monotone, and read between the points. None: the first concept never shows.

    >>> window([900, 600, 300, 0], [0.0, 0.0, 1.0, 1.0])
    (375, 525)
    """
    order = np.argsort(timesteps)
    t, s = np.asarray(timesteps, dtype=float)[order], np.asarray(share, dtype=float)[order]
    s = np.maximum.accumulate(s[::-1])[::-1]  # falls with t
    if s[0] <= 0:
        return None
    s = s / s[0]
    t1, t2 = (round(float(np.interp(-level, -s, t))) for level in (high, low))
    return t1, max(t2, t1 + 1)


def swap_figure(table: pd.DataFrame, xi: Tensor) -> Figure:
    """Share of pictures that still show the first concept, by the timestep of the swap, over ξ(t)."""
    fig, (ax,) = panels(1, 6.5, 2.8)
    t = np.arange(len(xi))
    ax.fill_between(t, (xi / xi.max()).numpy(), color="#dddddd", linewidth=0, label="ξ(t), scaled")
    for i, (pair, part) in enumerate(table.groupby("pair", sort=False)):
        style = {
            "marker": "osD"[i % 3],
            "linestyle": ("-", "--", ":")[i % 3],
            "markersize": 6 - i % 3,
        }  # all seen
        ax.plot(part.timestep, part["first"], color=COLORS[i % len(COLORS)], label=f"{pair}: first", **style)
    ax.set(xlim=(len(xi), 0), ylim=(-0.02, 1.05))
    ax.set_xlabel("timestep at which the prompt is swapped (drawing runs from left to right)", fontsize=8)
    ax.set_ylabel("share of pictures that show\nthe first concept", fontsize=8)
    ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def examples(pipe, concepts: Sequence[Concept], seeds: Sequence[int], source: str, **drawing) -> tuple[list, dict]:
    """Training data of stage 2 by the model as it is, and (images, masks) by name."""
    found, shown = [], {}
    for concept in concepts:
        prompts = [fill(TEMPLATE, concept.name)] * len(seeds)
        with fast(pipe):
            images, maps = drawn_and_read(pipe, [concept.name] * len(seeds), prompts, list(seeds), **drawing)
        masks = make_masks(source, pipe, concept, images, maps=maps)
        found.append(example(pipe, concept, images, masks, prompts))
        shown[concept.name] = (images, masks)
    return found, shown


def watch(records: Iterable[Record], xi: Tensor, every: int = 10) -> Iterator[Record]:
    """Pass on the records of a training; in a notebook, a figure of what has come so far is redrawn as they come."""
    from IPython.display import display

    seen, handle = [], None
    for record in records:
        seen.append(record)
        yield record
        if record.step % every and record.step != record.steps:
            continue
        fig = training_figure(seen, xi)
        if handle is None:
            handle = display(fig, display_id=True)
        else:
            handle.update(fig)


def training_figure(records: Sequence[Record], xi: Tensor) -> Figure:
    """Left: loss of Eq. 3 by step, relative to the concept's first five. Right: the drawn timesteps, and ξ(t)."""
    fig, (left, right) = panels(2, 3.6, 2.6)
    losses: dict[str, list] = {}
    for record in records:
        for name, loss in zip(record.names, record.losses.tolist(), strict=True):
            losses.setdefault(name, []).append(loss)
    for i, (name, values) in enumerate(losses.items()):
        relative = np.asarray(values) / np.mean(values[:5])
        smooth = pd.Series(relative).rolling(9, center=True, min_periods=1).mean()
        steps, color = np.arange(1, len(values) + 1), COLORS[i % len(COLORS)]
        left.plot(steps, relative, ".", color=color, markersize=2, alpha=0.5)
        left.plot(steps, smooth, color=color, linewidth=1.5, label=name)
    left.set(xlim=(0, records[0].steps + 1), ylim=(0, None))
    left.set_xlabel("step", fontsize=8)
    left.set_title("loss, relative to its start", fontsize=8)
    drawn = torch.cat([record.timesteps for record in records]).numpy()
    right.hist(drawn, 25, (0, len(xi)), density=True, color=COLORS[5], label="drawn")
    right.plot(np.arange(len(xi)), xi.numpy(), color=COLORS[1], linewidth=1.2, label="ξ(t)")
    right.set_xlabel("timestep", fontsize=8)
    right.set_title("where the training looks", fontsize=8)
    right.set_yticks([])
    right.set_xlim(len(xi), 0)  # as pictures are drawn: from noise to picture
    fig.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=4)
    return fig


def snapshots(
    pipe, data: Sequence[Example], configs: Mapping[str, TrainConfig], at: Sequence[int]
) -> dict[str, dict[int, Loras]]:
    """Train under several settings, all concepts in one pass, and keep the LoRAs as they are after some steps."""
    kept: dict[str, dict[int, Loras]] = {}
    for label, config in configs.items():
        if config.concepts_per_pass < len(data):
            raise MaceError(f"concepts_per_pass is {config.concepts_per_pass}; allowed here: {len(data)} or more.")
        run = train(pipe, data, config)
        for record in run:
            if record.step in at:
                kept.setdefault(label, {})[record.step] = run.loras
    return kept


def own_words(pipe, phrase: str, template: str = TEMPLATE) -> Tensor:
    """Embeddings (T, d) of the empty prompt in which the phrase's own tokens stand where its prompt has them."""
    prompt = fill(template, phrase)
    full, empty = encode(pipe, [prompt, ""])
    at = sorted({i for span in token_spans(tokenizers(pipe)[0], prompt, phrase) for i in span})
    empty = empty.clone()
    empty[at] = full[at]
    return empty


@torch.no_grad()
def draw_words(
    pipe, names: Sequence[str], seeds: Sequence[int], steps: int, guidance: float | None = None, batch: int = 8
) -> dict:
    """Pictures by name, drawn from the name's own words alone (see `own_words`); not for SDXL.

    guidance: the pipeline's own unless given.
    """
    jobs, images = [(name, seed) for name in names for seed in seeds], []
    e = {name: own_words(pipe, name) for name in names}
    for start in range(0, len(jobs), batch):
        some = jobs[start : start + batch]
        context = torch.stack([e[name] for name, _ in some]).to(pipe.unet.device, pipe.unet.dtype)
        generators = [torch.Generator().manual_seed(int(seed)) for _, seed in some]
        options = {"num_inference_steps": steps, "generator": generators, **guidance_option(pipe, guidance)}
        with fast(pipe):
            images += pipe(prompt_embeds=context, **options).images
    return {n: images[i * len(seeds) : (i + 1) * len(seeds)] for i, n in enumerate(names)}


def measure(pipe, kept: Mapping[str, Sequence[str]], loras: Loras, draw, share) -> tuple[list[dict], dict]:
    """Concept by concept, with its LoRA alone: rows (concept, name, role, share) and the pictures by (concept, name).

    kept: by concept, the names that share a word with it. draw(names): pictures by name. share(pictures): by name.
    """
    rows, pictures = [], {}
    identity = torch.eye(next(iter(loras.D.values())).shape[-1], dtype=torch.float64)
    for concept, near in kept.items():
        with written(pipe, Fusion(identity), loras.select(concept)):
            images = draw([concept, *near])
        for name, value in share(images).items():
            role = "erased" if name == concept else "shares a word"
            rows.append({"concept": concept, "name": name, "role": role, "share": value})
            pictures[concept, name] = images[name]
    return rows, pictures


# --- what a run found


def window_said(measured: tuple[int, int] | None, t1: int, t2: int) -> str:
    """When the concept is decided, and whether ξ of the settings looks there; measured: of `window`."""
    if measured is None:
        return "No window can be measured: the first concept never shows. Give more pictures, or other pairs."
    late, early = measured  # time falls while a picture is drawn
    both = min(early, t2) - max(late, t1)
    if late >= t2:
        where = "later, when it is decided"
    elif early <= t1:
        where = "earlier, before it is decided"
    else:
        where = f"at {both} of these {early - late} timesteps"
    return f"Which concept is drawn is decided between t = {early} and {late}. ξ, from {t2} to {t1}, looks {where}."


def losses_said(losses: Sequence[float], part: float = 0.05) -> str:
    """When the loss has fallen to a part of its first five steps' mean for good, or how far it falls."""
    relative = np.asarray(losses) / np.mean(losses[:5])
    above = np.flatnonzero(relative > part)
    if len(above) == len(relative) or above[-1:] == len(relative) - 1:
        return f"After {len(losses)} steps the loss is at {relative[-5:].mean():.2f} of its start."
    step = int(above[-1]) + 2 if len(above) else 1
    return (
        f"From step {step} of {len(losses)} on the loss stays below {part:g} of its start: what is trained after that "
        "finds hardly anything left to push down."
    )


def sampling_said(
    needed: Mapping[str, int | None], kept: Mapping[str, float | None], last: Mapping[str, float], pictures: int
) -> str:
    """What each sampling has kept (percent of so many pictures) once half is gone, and at the last step.

    Samplings are told apart where their 95 % intervals do not meet.
    """
    reached = {
        kind: wilson(round(share * pictures / 100), pictures) for kind, share in kept.items() if share is not None
    }
    told = [
        f"{kind} after {needed[kind]} steps {kept[kind]:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
        for kind, (low, high) in reached.items()
    ]
    text = "No sampling halves the concepts"
    if reached:
        text = f"With the concepts halved, names that share a word are kept by {series(told)}"
        apart = max(low for low, _ in reached.values()) > min(high for _, high in reached.values())
        meet = "do not all meet" if apart else "meet: this run does not tell them apart"
        text += f"; the 95 % intervals of {pictures} pictures {meet}"
    if reached and (never := [kind for kind, step in needed.items() if step is None]):
        text += f". Not halved: {series(never)}"
    return f"{text}. At the last step they keep {series([f'{kind} {value:.0f} %' for kind, value in last.items()])}."
