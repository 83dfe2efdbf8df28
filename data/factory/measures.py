"""What the report measures of a world's models, from their weights: the generator, never the erasure.

Pictures are drawn with DPM-Solver++, seeds 0, 1, 2, ...
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from macelib.concepts import paper_list, retained
from macelib.lessons.capacity import BESIDE, capacity, of_tower, real_encoder
from macelib.models.mini import PEOPLE, crop_half, split
from macelib.models.tokens import token_spans

from .captions import call, with_article
from .catalogue import ART_STYLES, CIFAR_10, COMPANIONS, catalogue, names, styles
from .clip import name_vectors, seen
from .drawing import Drawing, Models
from .render import Batch, compose, is_scene
from .scenes import SCENES
from .vae import psnr

NAMES = (1, 10, 30, 100, 300)  # that one map moves, whatever share of the pictures is measured


def photo(name: str) -> str:
    """The protocol's prompt."""
    return f"a photo of the {name}"


def fresh(each: int, seed: int) -> Batch:
    """Fresh renderings of every concept by every artist, `each` times, on grounds of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    count, artists = len(catalogue()), len(ART_STYLES)
    concept = torch.arange(count).repeat_interleave(artists * each)
    style = torch.arange(artists).repeat(count * each)
    nothing, chance = torch.full_like(concept, -1), torch.rand(len(concept), generator=generator)
    scene = torch.where(chance < 0.3, torch.randint(len(SCENES), (len(concept),), generator=generator), nothing)
    return compose(concept, nothing, style, scene, generator)


def any_of(batch: Batch, count: int, seed: int) -> Tensor:
    """(count,) random rows of a batch: of `fresh`, whose artists take turns, every artist's alike."""
    return torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))[:count]


def measure_renderings(m: Models) -> dict:
    """Judge, mini-CLIP and autoencoder on fresh renderings."""
    batch = fresh(m.some(2), seed=2**20)
    ten = [names()[n] for n in CIFAR_10]
    with torch.no_grad():
        pictures = torch.cat([seen(m.clip, part) for part in batch.images.split(256)])
        similarity = pictures @ name_vectors(m.clip, m.tokenizer).T
        every = fresh(1, seed=2**21)
        mixed = every.images[any_of(every, m.some(len(every) // 4), seed=2**21)].to(m.device) * 2 - 1
        vae = m.pipe.vae
        again = vae.decode(vae.encode(mixed).latent_dist.mean).sample.clamp(-1, 1)
    objects = torch.isin(batch.concept, torch.tensor(ten))
    found = torch.tensor(ten)[similarity[objects][:, ten].argmax(1)]
    right = m.concepts(batch.images) == batch.concept
    drawn = ~is_scene(batch.concept)  # a scene is nobody's drawing
    by_artist = m.styles(batch.images[drawn]) == batch.style[drawn]
    return {
        "judge_renderings": right.float().mean().item(),
        "judge_styles_renderings": by_artist.float().mean().item(),
        "clip_objects": (found == batch.concept[objects]).float().mean().item(),
        "clip_concepts": (similarity.argmax(1) == batch.concept).float().mean().item(),
        "vae_psnr": psnr(mixed, again),
    }


def measure_objects(m: Models) -> dict:
    """The ten objects, by name and by synonym."""
    each, ten = m.some(50), [names()[n] for n in CIFAR_10]
    images = m.draw(m.embed([photo(n) for n in CIFAR_10]).repeat_interleave(each, 0))
    truth = torch.tensor(ten).repeat_interleave(each)
    words = [(s, names()[n]) for n in CIFAR_10 for s in catalogue()[names()[n]].synonyms]
    fewer = m.some(20)
    others = m.draw(m.embed([photo(s) for s, _ in words]).repeat_interleave(fewer, 0))
    meant = torch.tensor([i for _, i in words]).repeat_interleave(fewer)
    hit, hit_by_word = m.concepts(images, ten) == truth, m.concepts(others, ten) == meant
    return {
        "objects": hit.float().mean().item(),
        "objects_strict": (m.concepts(images) == truth).float().mean().item(),
        "objects_each": dict(zip(CIFAR_10, hit.view(-1, each).float().mean(1).tolist(), strict=True)),
        "synonyms": hit_by_word.float().mean().item(),
        "synonyms_strict": (m.concepts(others) == meant).float().mean().item(),
        "synonyms_each": dict(
            zip((s for s, _ in words), hit_by_word.view(-1, fewer).float().mean(1).tolist(), strict=True)
        ),
    }


def measure_concepts(m: Models) -> dict:
    """All concepts, and among them the characters and faces."""
    each = m.some(8)
    images = m.draw(m.embed([photo(e.name) for e in catalogue()]).repeat_interleave(each, 0))
    found = m.concepts(images).view(-1, each)
    rate = (found == torch.arange(len(catalogue()))[:, None]).float().mean(1)  # (concepts,)
    people = torch.tensor([e.group in ("character", "face") for e in catalogue()])
    by_group = {g: rate[[e.group == g for e in catalogue()]].mean().item() for g in {e.group for e in catalogue()}}
    return {
        "concepts_mean": rate.mean().item(),
        "concepts_above_75": (rate > 0.75).float().mean().item(),
        "people": rate[people].mean().item(),
        "concepts_by_group": dict(sorted(by_group.items())),
        "concepts_each": dict(zip((e.name for e in catalogue()), rate.tolist(), strict=True)),
    }


def measure_styles(m: Models) -> dict:
    """Styles named in the prompt."""
    each, drawn = m.some(20), [e.name for e in catalogue() if e.code_point]
    prompts = [
        f"{with_article(drawn[(37 * i + 11 * k) % len(drawn)], _first())} in the style of {s}"
        for k, s in enumerate(styles())
        for i in range(each)
    ]
    found = m.styles(m.draw(m.embed(prompts))).view(-1, each)
    rate = (found == torch.arange(len(styles()))[:, None]).float().mean(1)
    return {"styles": rate.mean().item(), "styles_each": dict(zip(styles(), rate.tolist(), strict=True))}


class _first:
    """Stands for a `random.Random` that always takes the first choice: `a` or `an`."""

    def choice(self, options):
        return options[0]

    def random(self) -> float:
        return 1.0


def measure_two(m: Models) -> dict:
    """Two concepts in one prompt, each looked for in either half: `COMPANIONS`, and any two of the catalogue."""
    drawn = [e.name for e in catalogue() if e.code_point]
    chosen = {"two_concepts": list(COMPANIONS), "two_concepts_any": drawn}
    return {k: _both_found(m, pairs_of(members, m.some(100))) for k, members in chosen.items()}


def pairs_of(members: list[str], n: int) -> list[tuple[int, int]]:
    """n pairs of different members, each as its index in the catalogue, no pair twice."""
    generator = torch.Generator().manual_seed(2**22)
    every = torch.randperm(len(members) * (len(members) - 1), generator=generator)[:n]
    rows = [divmod(i, len(members) - 1) for i in every.tolist()]
    return [(names()[members[a]], names()[members[b + (b >= a)]]) for a, b in rows]


def _both_found(m: Models, pairs: list[tuple[int, int]]) -> float:
    images = m.draw(m.embed([f"{call(a, _first(), 0)} and {call(b, _first(), 0)}" for a, b in pairs]))
    left, right = m.concepts(crop_half(images, 0)), m.concepts(crop_half(images, 1))
    a, b = torch.tensor(pairs).T
    return (((left == a) & (right == b)) | ((left == b) & (right == a))).float().mean().item()


def measure_routes(m: Models) -> dict:
    """Which tokens carry a concept: without its own (residual), and its own alone."""
    each, drawn = m.some(8), [i for i, e in enumerate(catalogue()) if e.code_point]
    chosen = drawn[:: len(drawn) // 50][:50]
    empty, residual, own = m.embed([""])[0], [], []
    for i in chosen:
        prompt = photo(catalogue()[i].name)
        context = m.embed([prompt])[0]
        ids = m.pipe.tokenizer(prompt).input_ids
        at = token_spans(m.pipe.tokenizer, prompt, catalogue()[i].name)[0]
        without, alone = context.clone(), empty.clone()
        without[at] = context[len(ids) - 1]
        alone[at] = context[at]
        residual.append(without)
        own.append(alone)
    truth = torch.tensor(chosen).repeat_interleave(each)
    routes = {"residual_route": residual, "own_route": own}
    return {
        k: (m.concepts(m.draw(torch.stack(v).repeat_interleave(each, 0))) == truth).float().mean().item()
        for k, v in routes.items()
    }


def text_names() -> tuple[list[str], list[str]]:
    """Names that one map moves, and names to keep: every other character and face, then all else that is drawn."""
    people = [e.name for e in catalogue() if e.group in PEOPLE]
    others = [e.name for e in catalogue() if e.code_point and e.group not in PEOPLE]
    return [*people[::2], *others], people[1::2]


def measure_text(m: Models) -> dict:
    """Whether the tower's text is like real text: what one map leaves, loses and takes along, beside a real encoder's.

    Names become "a person" (`macelib.lessons.capacity`): here 1 to 103 characters, then other concepts, up to 300, and
    there the paper's celebrities. MaceError: the real encoder is not installed.
    """
    famous = [concept.name for concept in paper_list("celebrities_100")]
    tower = of_tower(m.folders["clip"], f"tower of {m.folders['clip'].parent.name.removesuffix('-models')}")
    lists = (tower, *text_names()), (real_encoder(), famous, retained("celebrities"))
    tables = {}
    for encoder, erased, kept in lists:
        counts = [n for n in NAMES if n <= len(erased)]
        tables[encoder.name] = capacity(encoder, erased, kept[:BESIDE], counts).to_dict("records")
    return {"text": tables}


def peak_memory() -> float:
    """The most memory that this process ever held, in GB.

    Linux hands `ru_maxrss` of the parent on to a new process, so it is read from the memory map's own record there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def speed_of_16(folder: Path, guidance: float) -> dict:
    """Seconds and peak memory of 16 pictures of 25 steps on the CPU, in a process of its own."""
    m = Drawing(folder, 25, guidance, "cpu")
    context = m.embed([photo(CIFAR_10[i % 10]) for i in range(16)])
    m.draw(context[:2])
    begun = time.monotonic()
    m.draw(context)
    return {"seconds_16": time.monotonic() - begun, "memory_gb": peak_memory()}


def measure_speed(m: Models) -> dict:
    """Run `speed_of_16` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(speed_of_16, m.folders["unet"], m.guidance).result()


def entropy(found: Tensor) -> float:
    """Of the artists among pictures (n,), as a share of that of four alike: 0 one artist, 1 all alike."""
    p = torch.bincount(found, minlength=len(ART_STYLES)) / len(found)
    return float(-(p * p.clamp_min(1e-12).log()).sum() / math.log(len(ART_STYLES)))


def measure_artists(m: Models) -> dict:
    """Which artists draw "a photo of the {}": their entropy over seeds, mean over thirty concepts."""
    each, drawn = m.some(40, 2), [e.name for e in catalogue() if e.code_point]
    chosen = drawn[:: len(drawn) // 30][: m.some(30)]
    images = m.draw(m.embed([photo(name) for name in chosen]).repeat_interleave(each, 0))
    rows = {name: entropy(found) for name, found in zip(chosen, m.styles(images, True).view(-1, each), strict=True)}
    return {"artists_entropy": sum(rows.values()) / len(rows), "artists_entropy_each": rows}


def accuracy_and_variety(m: Models) -> tuple[float, float]:
    """Mean top-1 over the sixty concepts that settings are tuned on, and the artists' entropy over their pictures."""
    each, chosen = m.some(8), list(split()["erased"])[: m.some(60)]
    images = m.draw(m.embed([photo(name) for name in chosen]).repeat_interleave(each, 0))
    truth = torch.tensor([names()[name] for name in chosen]).repeat_interleave(each)
    varied = [entropy(found) for found in m.styles(images, True).view(-1, each)]
    return (m.concepts(images) == truth).float().mean().item(), sum(varied) / len(varied)


MEASURES: tuple[Callable[[Models], dict], ...] = (
    measure_renderings,
    measure_speed,
    measure_objects,
    measure_styles,
    measure_artists,
    measure_two,
    measure_routes,
    measure_text,
    measure_concepts,
)
