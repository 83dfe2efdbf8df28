"""Notebook 02: attention per token, timestep and layer, and masks made of it against exact ones."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from ..errors import MaceError
from ..evaluate.metrics import bootstrap, interval, resample
from ..method.masks import otsu
from ..models.attention import Maps, resize, trace
from ..models.mini import renderings
from ..models.sample import encode_images, image_size
from ..models.text import added_conditions, encode, tokenizers
from ..models.tokens import token_spans, tokenize
from ..show import viz
from .shared import series

THAN = {  # how `against_said` names what the name's own map is compared with
    "the word photo": "the map of the word *photo* does", "another thing's name": "that of another thing's name does",
    "the whole picture": "the whole picture does", "its name, best threshold": "with the best threshold",
}  # fmt: skip
ALL = "all"  # steps, or layers: their mean


def pieces(tokenizer, prompt: str) -> list[str]:
    """The prompt's tokens as text, by position: [BOS], the pieces of its words, [EOS]; padding is left out."""
    ids, offsets = tokenize(tokenizer, prompt)
    last = max((i for i, (start, stop) in enumerate(offsets) if start < stop), default=0)
    return ["[BOS]", *(tokenizer.decode([i]).strip() for i in ids[1 : last + 1]), "[EOS]"]


def block(layer: str) -> str:
    """The part of the UNet that a layer is in: "down 0", "mid", "up 2".

    >>> block("down_blocks.0.attentions.0.transformer_blocks.0.attn2"), block("mid_block.attentions.0")
    ('down 0', 'mid')
    """
    name, number = layer.split(".")[:2]
    return name.removesuffix("_block") if name == "mid_block" else f"{name.removesuffix('_blocks')} {number}"


def by_block(maps: Maps, positions: Sequence[int], **kw) -> dict[str, Tensor]:
    """`maps.map` by block of the UNet, the mean over the block's layers, in the order of execution."""
    found: dict[str, list[Tensor]] = {}
    size = kw.pop("size", None) or tuple(maps.map(positions, **kw).shape[-2:])
    for layer in maps.layers:
        found.setdefault(block(layer), []).append(maps.map(positions, layer=layer, size=size, **kw))
    return {name: torch.stack(some).mean(0) for name, some in found.items()}


def shares(maps: Maps, groups: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Attention of each group of tokens by UNet call (steps,), 0..1: mean over the picture's places and the layers.

    maps: traced with timesteps="each"; the first image counts.
    """
    A = torch.stack([maps.layer(layer)[0].mean((1, 2, 3)) for layer in maps.layers]).mean(0)  # (steps, T)
    return {name: A[:, list(positions)].sum(1) for name, positions in groups.items()}


def view(
    image: Image.Image, maps: Maps, position: int, step: int | str = ALL, layer: str = ALL, label: str = ""
) -> viz.Figure:
    """One token's map over the picture: at one UNet call (0, 1, ...) or the mean; of one layer or the mean."""
    heat = maps.map(position, layer=None if layer == ALL else layer)  # (steps, h, w)
    heat = heat.mean(0) if step == ALL else heat[step]
    when = "mean of all steps" if step == ALL else f"t = {maps.timesteps[step]:.0f}"
    where = "all layers" if layer == ALL else short(layer)
    return viz.attention([[image]], [[heat]], title=f"{label or position}, {when}, {where}", size=2.6)


def short(layer: str) -> str:
    """A layer in a few letters: its block and its number there.

    >>> short("up_blocks.1.attentions.0.transformer_blocks.0.attn2")
    'up 1.0'
    """
    parts = layer.split(".")
    numbers = [parts[parts.index("attentions") + 1]] if "attentions" in parts else []
    deep = parts[parts.index("transformer_blocks") + 1] if "transformer_blocks" in parts else "0"
    return ".".join([block(layer), *numbers, *([deep] if deep != "0" else [])])


def explorer(image: Image.Image, maps: Maps, labels: Sequence[str], position: int = 1):
    """Sliders of token, timestep and layer over `view`, as a widget; it starts like `view(image, maps, position)`.

    labels: of the token positions, from 0. A picture is drawn when a slider is let go; errors are shown below it.
    """
    from ipywidgets import HTML, Image as Picture, SelectionSlider, VBox  # noqa: I001

    steps = [("all", ALL), *((f"{t:.0f}", i) for i, t in enumerate(maps.timesteps))]
    layers = [("all", ALL), *((short(layer), layer) for layer in maps.layers)]
    tokens = [(f"{i} {text}", i) for i, text in enumerate(labels)]
    chosen = {
        "position": (tokens, position, "token"),
        "step": (steps, ALL, "timestep"),
        "layer": (layers, ALL, "layer"),
    }
    sliders = {
        name: SelectionSlider(options=options, value=value, description=text, continuous_update=False)
        for name, (options, value, text) in chosen.items()
    }
    picture, message = Picture(format="png"), HTML()

    def update(_=None) -> None:
        values = {name: slider.value for name, slider in sliders.items()}
        message.value = ""
        try:
            picture.value = viz.png(view(image, maps, **values, label=labels[values["position"]]))
        except (MaceError, ValueError) as error:
            message.value = str(error)

    for slider in sliders.values():
        slider.observe(update, "value")
    update()
    return VBox([*sliders.values(), picture, message])


# --- masks against exact ones


def exact(pipe, names: Sequence[str], scenic: Sequence[bool], seed: int = 0) -> tuple[list[Image.Image], Tensor]:
    """Renderings of the mini world's concepts at the pipeline's size, and their exact coverage (n, 1, H, W), 0..1.

    scenic: against a painted scene, else against a plain colour. seed: which of the artists draws each.
    MaceError for a name of which no rendering is shipped.
    """
    shown, pictures, alpha = renderings()
    if unknown := sorted(set(names) - set(shown)):
        raise MaceError(f"There are no renderings of {', '.join(unknown)}: choose among {', '.join(shown)}.")
    generator, which = torch.Generator().manual_seed(seed), [shown.index(name) for name in names]
    artist = torch.randint(pictures.shape[1], (len(which),), generator=generator)
    chosen = torch.tensor(which), artist, torch.tensor([int(s) for s in scenic])
    height, width = image_size(pipe)
    pixels = (pictures[chosen].permute(0, 2, 3, 1) * 255).round().byte().numpy()  # (n, 64, 64, 3)
    images = [
        Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC) for p in np.ascontiguousarray(pixels)
    ]
    return images, resize(alpha[chosen], (height, width))


@torch.no_grad()
def noised(
    pipe, images: Sequence[Image.Image], prompts: Sequence[str], phrases: Sequence[str], t: int, seed: int = 0
) -> dict[str, Tensor]:
    """Attention (n, h, w) of one phrase per image, by block of the UNet and for all layers, read at timestep t.

    The images are encoded, noised to t (0-999), and shown to the UNet once. MaceError: a prompt without its phrase.
    """
    spans = [
        sorted({i for s in token_spans(tokenizers(pipe)[0], *p) for i in s}) for p in zip(prompts, phrases, strict=True)
    ]
    if not all(spans):
        raise MaceError(f"{prompts[spans.index([])]!r} does not hold {phrases[spans.index([])]!r}.")
    unet, x, e = pipe.unet, encode_images(pipe, images).cpu(), encode(pipe, list(prompts))
    bar = DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod[t]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    noisy = (bar.sqrt() * x + (1 - bar).sqrt() * noise).to(unet.device, unet.dtype)
    added = added_conditions(pipe, list(prompts), images[0].size[::-1])
    with trace(pipe, guided=False) as maps:
        unet(noisy, t, encoder_hidden_states=e.to(noisy), added_cond_kwargs=added)
    each = [{ALL: maps.map(s, image=i), **by_block(maps, s, image=i)} for i, s in enumerate(spans)]
    return {name: torch.stack([one[name].cpu() for one in each]) for name in each[0]}


def cut(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (n, 1, H, W), 0 or 1, of maps (n, h, w): Otsu's threshold of each."""
    return torch.stack([(resize(h[None], size) > otsu(h)).float() for h in heat])


def iou(mask: Tensor, alpha: Tensor) -> Tensor:
    """Intersection over union (n,) of masks (n, 1, H, W), both cut at one half; 1 where both are empty.

    >>> iou(torch.ones(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]))
    tensor([0.2500])
    """
    a, b = mask > 0.5, alpha > 0.5
    union = (a | b).flatten(1).sum(1)
    return torch.where(union > 0, (a & b).flatten(1).sum(1) / union.clamp(min=1), torch.ones(len(a)))


def best_iou(heat: Tensor, alpha: Tensor, levels: int = 40) -> Tensor:
    """Highest IoU (n,) that any threshold of the maps (n, h, w) could reach: what the map knows, whatever cuts it."""
    size = tuple(alpha.shape[-2:])
    high = resize(heat[:, None], size)
    low, top = high.amin((1, 2, 3), keepdim=True), high.amax((1, 2, 3), keepdim=True)
    return torch.stack([iou((high > low + (top - low) * k / levels).float(), alpha) for k in range(levels)]).amax(0)


# --- what a run found


def likeness(a: Tensor, b: Tensor) -> float:
    """Correlation of two maps over their places, 0 where one of them is even."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1].nan_to_num())


def time_said(timesteps: Sequence[float], heat: Tensor) -> str:
    """When a map (steps, h, w) is brightest, and how like their mean the maps are."""
    top, like = heat.flatten(1).amax(1).tolist(), [likeness(h, heat.mean(0)) for h in heat]
    high, low, other = top.index(max(top)), top.index(min(top)), like.index(min(like))
    at = lambda i: f"t = {timesteps[i]:.0f}"  # noqa: E731
    return (
        f"The own tokens' map is brightest at {at(high)} (up to {top[high]:.2f} of a place's attention per token), "
        f"faintest at {at(low)} ({top[low]:.2f}). Its likeness to the mean over time (correlation over the places) is "
        f"{like[0]:.2f} at the first step, {at(0)}, and least at {at(other)} ({like[other]:.2f})."
    )


def blocks_said(blocks: Mapping[str, Tensor]) -> str:
    """Which block's map is most and least like the mean of all; block -> (steps, h, w)."""
    means = {name: heat.mean(0) for name, heat in blocks.items()}
    like = {name: likeness(heat, torch.stack([*means.values()]).mean(0)) for name, heat in means.items()}
    most, least = max(like, key=like.get), min(like, key=like.get)
    return (
        f"Most like the mean of all blocks is {most} (correlation {like[most]:.2f}), least {least} ({like[least]:.2f})."
    )


def shares_said(parts: Mapping[str, Tensor], timesteps: Sequence[float]) -> str:
    """Who gets the attention on average over time, and the own tokens' at both ends; parts: of `shares`."""
    means = {name: float(share.mean()) for name, share in parts.items()}
    told = series([f"{name} {means[name]:.2f}" for name in sorted(means, key=means.get, reverse=True)])
    first, last = float(parts["own"][0]), float(parts["own"][-1])
    return (
        f"On average over time: {told}. The own tokens get {first:.2f} at t = {timesteps[0]:.0f} and {last:.2f} at "
        f"t = {timesteps[-1]:.0f}."
    )


def masks_said(overlap: Tensor, names: Sequence[str], scenic: Sequence[bool]) -> str:
    """Mean IoU by ground and the best and the worst name; overlap (n,)."""
    frame = pd.DataFrame({"name": names, "scenic": scenic, "iou": overlap.tolist()})
    by_name, by_ground = (frame.groupby(column).iou.mean() for column in ("name", "scenic"))
    where = {False: "against a plain colour", True: "against a scene"}
    grounds = [f"{value:.2f} {where[bool(scene)]}" for scene, value in by_ground.items()]
    return (
        f"IoU is {frame.iou.mean():.2f} on average over {len(frame)} renderings ({series(grounds)}); best "
        f"{by_name.idxmax()} ({by_name.max():.2f}), worst {by_name.idxmin()} ({by_name.min():.2f})."
    )


def levels_said(quality: Mapping[str, Sequence[float]], levels: Sequence[int]) -> str:
    """The best of all layers together against the best single block, and where each is best."""
    best = {where: max(values) for where, values in quality.items()}
    at = {where: levels[list(values).index(best[where])] for where, values in quality.items()}
    single = max((where for where in best if where != ALL), key=best.get)
    return (
        f"All layers together reach an IoU of {best[ALL]:.2f} (t = {at[ALL]}), the best single block, {single}, "
        f"{best[single]:.2f} (t = {at[single]}). Best t of each: {series([f'{w} {t}' for w, t in at.items()], 99)}."
    )


def against(ious: Mapping[str, Tensor], times: int = 2000) -> pd.DataFrame:
    """IoU (n,) by what was asked for: a row each with its mean, by how much the first one's is higher, and the 95 %
    interval of that difference (columns IoU, lead, low, high); the same renderings, taken anew together."""
    (first, base), weights = next(iter(ious.items())), resample(len(next(iter(ious.values()))), times, 0)
    rows = {first: {"IoU": float(base.mean())}}
    for name, values in list(ious.items())[1:]:
        lead, sample = bootstrap([(base - values).double().numpy()], lambda mean: mean, weights)
        low, high = interval(sample)
        rows[name] = {"IoU": float(values.mean()), "lead": lead, "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index")


def against_said(table: pd.DataFrame) -> str:
    """What the first row of `against` beats, and what it is not told apart from."""
    told = []
    for name, row in table.iloc[1:].iterrows():
        sure = "more" if row.low > 0 else "less" if row.high < 0 else "not surely more or less"
        told.append(f"{sure} than {THAN.get(name, name)} ({row.lead:+.2f}; {row.low:+.2f} to {row.high:+.2f})")
    return f"The map of {table.index[0]} overlaps with the thing {series(told)}."
