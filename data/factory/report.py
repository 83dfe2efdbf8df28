"""The quality table of the shipped models, from their weights: `python -m factory report`.

Every measure is kept in the work folder as soon as it is there, under the hash of the weights and the settings, so that
a report that was killed goes on where it stopped. Pictures are drawn with DPM-Solver++, seeds 0, 1, 2, ...
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTokenizer, ResNetForImageClassification

from macelib.files import data_folder
from macelib.models.mini import crop_half, judge_logits
from macelib.models.pipelines import MINI_GUIDANCE, cast, fast_precision, load_pipeline

from .captions import call, with_article
from .catalogue import ART_STYLES, CIFAR_10, COMPANIONS, catalogue, names, styles, world_folder
from .clip import name_vectors, seen
from .loop import work_folder
from .render import Batch, compose, sample
from .table import STEPS, TARGETS, into_readme, text_table
from .unet import rates_path
from .vae import psnr

BATCH = {"cpu": 40, "cuda": 400}  # pictures drawn at a time


class Drawing:
    """mini-SD, loaded once."""

    def __init__(self, device: str | None = None, steps: int = STEPS, guidance: float = MINI_GUIDANCE) -> None:
        self.steps, self.guidance = steps, guidance
        self.pipe = load_pipeline("mini-sd", device=device)
        self.pipe.set_progress_bar_config(disable=True)
        self.device = self.pipe.device
        self.precision = fast_precision(self.pipe)
        self.batch = BATCH.get(self.device.type, BATCH["cpu"])

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Tensor:
        """(n, 77, d) what the UNet reads."""
        return self.pipe.encode_prompt(prompts, self.pipe.device, 1, False)[0]

    @torch.no_grad()
    def draw(self, context: Tensor, first_seed: int = 0) -> Tensor:
        """Pictures (n, 3, 64, 64) in 0..1 of embeddings (n, 77, d), seeds counted from `first_seed`."""
        empty = self.embed([""])
        images = []
        for start in tqdm(range(0, len(context), self.batch), leave=False, desc="drawing", mininterval=5):
            part = context[start : start + self.batch]
            seeds = range(first_seed + start, first_seed + start + len(part))
            with cast(self.pipe, self.precision):
                out = self.pipe(
                    prompt_embeds=part,
                    negative_prompt_embeds=empty.expand(len(part), -1, -1),
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance,
                    generator=[torch.Generator().manual_seed(s) for s in seeds],
                    output_type="pt",
                )
            images.append(out.images.float().cpu())
        return torch.cat(images)


class Models(Drawing):
    """The shipped models, loaded once."""

    def __init__(self, steps: int = STEPS, guidance: float = MINI_GUIDANCE) -> None:
        super().__init__(steps=steps, guidance=guidance)
        folder = data_folder()
        self.clip = CLIPModel.from_pretrained(folder / "mini-clip", dtype=torch.float32).eval()  # on the CPU
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "mini-clip")
        judge = ResNetForImageClassification.from_pretrained(folder / "mini-judge", dtype=torch.float32)
        self.judge = judge.eval().to(self.device)

    @torch.no_grad()
    def logits(self, images: Tensor, head: int) -> Tensor:
        """(n, classes) what the judge says of pictures (n, 3, 64, 64): head 0 concepts, 1 styles."""
        return torch.cat([judge_logits(self.judge, part.to(self.device))[head].cpu() for part in images.split(128)])

    def concepts(self, images: Tensor, among: list[int] | None = None) -> Tensor:
        """(n,) the judge's top-1 concept, among all or some."""
        logits = self.logits(images, 0)
        if among is None:
            return logits.argmax(1)
        return torch.tensor(among)[logits[:, among].argmax(1)]

    def styles(self, images: Tensor) -> Tensor:
        """(n,) the judge's top-1 style."""
        return self.logits(images, 1).argmax(1)


def photo(name: str) -> str:
    """The protocol's prompt."""
    return f"a photo of the {name}"


def fresh(each: int, seed: int) -> Batch:
    """Fresh renderings of every concept by every artist, `each` times, on grounds of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    count, artists = len(catalogue()), len(ART_STYLES)
    concept = torch.arange(count).repeat_interleave(artists * each)
    style = torch.arange(artists).repeat(count * each)
    plain = sample(len(concept), generator)
    return compose(concept, torch.full_like(concept, -1), style, plain.scene, generator)


def measure_renderings(m: Models, share: float) -> dict:
    """Judge, mini-CLIP and autoencoder on fresh renderings."""
    batch = fresh(2, seed=2**20)
    ten = [names()[n] for n in CIFAR_10]
    with torch.no_grad():
        pictures = torch.cat([seen(m.clip, part) for part in batch.images.split(256)])
        similarity = pictures @ name_vectors(m.clip, m.tokenizer).T
        mixed = sample(400, torch.Generator().manual_seed(2**21)).images.to(m.device) * 2 - 1
        vae = m.pipe.vae
        again = vae.decode(vae.encode(mixed).latent_dist.mean).sample.clamp(-1, 1)
    objects = torch.isin(batch.concept, torch.tensor(ten))
    found = torch.tensor(ten)[similarity[objects][:, ten].argmax(1)]
    right = m.concepts(batch.images) == batch.concept
    return {
        "judge_renderings": right.float().mean().item(),
        "judge_styles_renderings": (m.styles(batch.images) == batch.style).float().mean().item(),
        "clip_objects": (found == batch.concept[objects]).float().mean().item(),
        "clip_concepts": (similarity.argmax(1) == batch.concept).float().mean().item(),
        "vae_psnr": psnr(mixed, again),
    }


def measure_objects(m: Models, share: float) -> dict:
    """The ten objects, by name and by synonym."""
    each, ten = max(4, int(50 * share)), [names()[n] for n in CIFAR_10]
    images = m.draw(m.embed([photo(n) for n in CIFAR_10]).repeat_interleave(each, 0))
    truth = torch.tensor(ten).repeat_interleave(each)
    words = [(s, names()[n]) for n in CIFAR_10 for s in catalogue()[names()[n]].synonyms]
    fewer = max(2, int(20 * share))
    others = m.draw(m.embed([photo(s) for s, _ in words]).repeat_interleave(fewer, 0))
    meant = torch.tensor([i for _, i in words]).repeat_interleave(fewer)
    hit, hit_by_word = m.concepts(images, ten) == truth, m.concepts(others, ten) == meant
    return {
        "objects": hit.float().mean().item(),
        "objects_strict": (m.concepts(images) == truth).float().mean().item(),
        "objects_each": dict(zip(CIFAR_10, hit.view(-1, each).float().mean(1).tolist(), strict=True)),
        "synonyms": hit_by_word.float().mean().item(),
        "synonyms_each": dict(
            zip((s for s, _ in words), hit_by_word.view(-1, fewer).float().mean(1).tolist(), strict=True)
        ),
    }


def measure_concepts(m: Models, share: float) -> dict:
    """All concepts, and among them the characters and faces."""
    each = max(1, int(8 * share))
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


def rate_concepts(each: int, steps: int) -> dict[str, float]:
    """Share of `each` pictures that the judge recognises, by concept; kept for `train unet --focus`."""
    m = Models(steps)
    images = m.draw(m.embed([photo(e.name) for e in catalogue()]).repeat_interleave(each, 0))
    hit = m.concepts(images).view(-1, each) == torch.arange(len(catalogue()))[:, None]
    rates = dict(zip((e.name for e in catalogue()), hit.float().mean(1).tolist(), strict=True))
    rates_path().with_suffix(".tmp").write_text(json.dumps(rates, indent=0))
    rates_path().with_suffix(".tmp").replace(rates_path())
    return rates


def measure_styles(m: Models, share: float) -> dict:
    """Styles named in the prompt."""
    each, drawn = max(2, int(20 * share)), [e.name for e in catalogue() if e.code_point]
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


def measure_two(m: Models, share: float) -> dict:
    """Two concepts in one prompt, each looked for in either half: `COMPANIONS`, and any two of the catalogue."""
    drawn = [e.name for e in catalogue() if e.code_point]
    chosen = {"two_concepts": list(COMPANIONS), "two_concepts_any": drawn}
    return {k: _both_found(m, pairs_of(members, max(10, int(100 * share)))) for k, members in chosen.items()}


def pairs_of(members: list[str], n: int) -> list[tuple[int, int]]:
    """n pairs of different members, each as its index in the catalogue, no pair twice."""
    generator = torch.Generator().manual_seed(2**22)
    every = torch.randperm(len(members) * (len(members) - 1), generator=generator)[:n]
    rows = [divmod(i, len(members) - 1) for i in every.tolist()]
    return [(names()[members[a]], names()[members[b + (b >= a)]]) for a, b in rows]


def _both_found(m: Models, pairs: list[tuple[int, int]]) -> float:
    images = m.draw(m.embed([f"{call(a, _first())} and {call(b, _first())}" for a, b in pairs]))
    left, right = m.concepts(crop_half(images, 0)), m.concepts(crop_half(images, 1))
    a, b = torch.tensor(pairs).T
    return (((left == a) & (right == b)) | ((left == b) & (right == a))).float().mean().item()


def measure_routes(m: Models, share: float) -> dict:
    """Which tokens carry a concept: without its own (residual), and its own alone."""
    from macelib.concepts import token_spans

    each, drawn = max(1, int(8 * share)), [i for i, e in enumerate(catalogue()) if e.code_point]
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


def peak_memory() -> float:
    """The most memory that this process ever held, in GB.

    Linux hands `ru_maxrss` of the parent on to a new process, so it is read from the memory map's own record there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def speed_of_16() -> dict:
    """Seconds and peak memory of 16 pictures on the CPU, in a process of its own."""
    m = Drawing("cpu")
    context = m.embed([photo(CIFAR_10[i % 10]) for i in range(16)])
    m.draw(context[:2])
    begun = time.monotonic()
    m.draw(context)
    return {"seconds_16": time.monotonic() - begun, "memory_gb": peak_memory()}


def measure_speed(m: Models, share: float) -> dict:
    """Run `speed_of_16` in a fresh process."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(speed_of_16).result()


MEASURES: tuple[Callable[[Models, float], dict], ...] = (
    measure_renderings,
    measure_speed,
    measure_objects,
    measure_styles,
    measure_two,
    measure_routes,
    measure_concepts,
)


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


def weights_hash() -> str:
    """SHA-256 over the shipped weight files."""
    digest = hashlib.sha256()
    for path in sorted(data_folder().glob("mini-*/**/*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_report(out: Path | None = None, share: float = 1.0, steps: int = STEPS, guidance: float | None = None) -> str:
    """Measure everything, write `report.json` and `contact_sheet.png`, and return the table as text.

    share: of the pictures. steps: of denoising; the time of 16 pictures is always that of 25.
    guidance: mini-SD's unless given. Without `out` they go to `data/world`, and the table to the README of a checkout.
    """
    own, out = out is None, out or world_folder()
    guidance = MINI_GUIDANCE if guidance is None else guidance
    models, key = Models(steps, guidance), weights_hash()
    precision = models.precision or "fp32"
    partial = work_folder("report") / f"{key[:16]}-{share}-{steps}-{guidance}-{precision}.json"
    results = json.loads(partial.read_text()) if partial.exists() else {}
    places = results.get("measured_on", {})
    for measure in MEASURES:
        if measure.__name__ not in results:
            results[measure.__name__] = measure(models, share)
            places[measure.__name__] = device_name(models.device) if measure is not measure_speed else "cpu"
            results["measured_on"] = places
            partial.with_suffix(".tmp").write_text(json.dumps(results))
            partial.with_suffix(".tmp").replace(partial)
    contact_sheet(models, out / "contact_sheet.png")
    values = {k: v for name, part in results.items() if name != "measured_on" for k, v in part.items()}
    report = {
        "weights_sha256": key,
        "steps": steps,
        "precision": precision,
        "guidance": guidance,
        "share_of_pictures": share,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "measured_on": places,
        "targets": {k: t for k, (_, t) in TARGETS.items() if t},
        "measures": values,
    }
    path = out / "report.json"
    path.with_suffix(".tmp").write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".tmp").replace(path)
    if own:
        into_readme(report)
    return text_table(report)
