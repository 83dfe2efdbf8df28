"""mini-SD's denoiser: a stock `UNet2DConditionModel` on 16x16x8 latents, text entering through cross-attention alone.

v-prediction, 10 % empty captions for guidance, and *context dropout*: for a share of the
samples the embeddings of [EOS] and padding are the empty prompt's, so that the concept's own tokens carry it too.
Latents and caption embeddings are computed once for a pool of pictures, which several passes share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.upsampling import Upsample2D
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .captions import SUPER, about_others, write_captions
from .catalogue import catalogue
from .clip import WIDTH as NARROW
from .clip import ids_of
from .loop import Average, Optimizer, Record, fast, run_steps, work_folder
from .render import SCENE_ONLY, concept_weights, is_scene, sample
from .vae import CHANNELS
from .widen import WIDTH, centred

POOL, PASSES = 24_000, 12  # pictures of a pool, and how often each is seen
CODES = slice(NARROW, -2)  # channels of an embedding that hold a name's code; the last two hold none
CHUNK = {"cpu": 256, "cuda": 2048}  # pictures drawn at a time
EMPTY, CONTEXT_DROPOUT = 0.10, 0.35  # shares of samples
USUAL_SHARE = 0.5  # of pictures that one artist draws beside his fourth of the rest: a name alone means his drawing
FAVOUR = 5.0  # how much more often than others the paper's ten objects are drawn, whose protocol asks for most
FOCUS = 3.0  # how much more often a concept is drawn that the judge finds in none of mini-SD's pictures of it
MOST = 5.0  # weight of the error of the clean picture at most
SCHEDULE = {  # Stable Diffusion's noise schedule, with v-prediction
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "steps_offset": 1,
}


def new_unet(width: int = WIDTH) -> UNet2DConditionModel:
    """The architecture, with random weights: cross-attention to a text of `width` at 16x16, 8x8 and mid block."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(96, 192, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 3, 4),  # heads, not their width
        cross_attention_dim=width,
        norm_num_groups=16,
    )


@dataclass
class Pool:
    """Pictures as latents, captions as embeddings."""

    latents: Tensor  # (n, 8, 16, 16) fp16
    caption: Tensor  # (n,) index into context; 0 is the empty caption
    context: Tensor  # (m, 77, d) fp16
    ends: Tensor  # (m,) position of the first [EOS]
    stranger: Tensor  # (n,) index into context of the same caption about another subject; `caption` where not asked for
    general: Tensor  # (n,) bool: the caption says what an anchor says, a super-category or a scene


@torch.no_grad()
def embed(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Embeddings (n, 77, d) fp16 and the position of each text's [EOS] (n,)."""
    rows, ends = [], []
    for first in range(0, len(texts), 256):
        ids = ids_of(tokenizer, texts[first : first + 256]).to(encoder.device)
        with fast(ids.device.type):
            rows.append(encoder(input_ids=ids).last_hidden_state.half())
        ends.append((ids == tokenizer.eos_token_id).int().argmax(1))
    return torch.cat(rows), torch.cat(ends)


@torch.no_grad()
def make_pool(
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    seed: int,
    size: int,
    strangers: bool = False,
    wider: float = SUPER,
    **shares,
) -> Pool:
    """Draw `size` pictures with captions, and encode both, on the models' device.

    With `strangers`, the captions about another subject, too. `wider` is the share of super-categories in
    `write_captions`, `shares` are those of `render.draw_facts`.
    """
    device = vae.device
    chunk = CHUNK.get(device.type, 256)
    generator = torch.Generator(device).manual_seed(seed)
    latents, texts, others, general = [], [], [], []
    with device:  # where the pictures' tensors are made
        for start in range(0, size, chunk):
            batch = sample(chunk, generator, usual=USUAL_SHARE, **shares)
            captions = write_captions(batch, generator, True, wider)
            texts += captions.texts
            general.append(is_scene(batch.concept) | torch.tensor([not subject for subject in captions.subjects]))
            others += about_others(captions, seed + start) if strangers else captions.texts
            with fast(device.type):
                mean = vae.quant_conv(vae.encoder(batch.images * 2 - 1))[:, :CHANNELS]
            latents.append(mean.half())
        distinct = {text: i for i, text in enumerate(dict.fromkeys(["", *texts, *others]))}
        context, ends = embed(encoder, tokenizer, list(distinct))
        caption, stranger = (torch.tensor([distinct[text] for text in column]) for column in (texts, others))
        return Pool(torch.cat(latents), caption, context, ends, stranger, torch.cat(general))


def rates_path() -> Path:
    """Where `python -m factory rate` leaves how often the judge recognises each concept."""
    return work_folder("unet") / "rates.json"


def weights_of_pool(focus: bool) -> Tensor:
    """(drawn concepts,) how often each is drawn; with `focus` the more, the less the judge recognised it."""
    weights = concept_weights(FAVOUR)
    if not focus:
        return weights
    if not rates_path().exists():
        raise ValueError("nothing is known about which concepts fail: run `python -m factory rate` first")
    rates, drawn = json.loads(rates_path().read_text()), [e.name for e in catalogue() if e.code_point]
    if not set(drawn) <= set(rates):
        raise ValueError(f"{rates_path()} is about other concepts: run `python -m factory rate` again")
    return weights * (1 + FOCUS * (1 - torch.tensor([rates[name] for name in drawn])))


def pool_on_disk(parts: tuple, seed: int, size: int, shares: dict) -> Pool:
    """The pool of this seed and mixture, from the work folder or made now; older ones are removed."""
    facts = (seed, size, list(Pool.__annotations__), {**shares, "weights": shares["weights"].tolist()})
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    path = work_folder("unet") / f"pool-{key}.pt"
    if not path.exists():
        for old in path.parent.glob("pool-*.pt"):
            old.unlink()
        torch.save(vars(make_pool(*parts, seed, size, **shares)), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    return Pool(**torch.load(path, weights_only=True))


def next_pool(parts: tuple, seed: int, size: int, shares: dict, device: str) -> Pool:
    """The pool of this seed and mixture: kept on disk on a CPU, where it takes minutes; a GPU makes it in seconds."""
    if device == "cpu":
        return pool_on_disk(parts, seed, size, shares)
    vae, encoder, tokenizer = parts
    return make_pool(vae.to(device), encoder.to(device), tokenizer, seed, size, **shares)


def drop_context(
    context: Tensor,
    ends: Tensor,
    empty: Tensor,
    generator: torch.Generator,
    foreign: float = 0.0,
    strange: Tensor | None = None,
    silent: Tensor | None = None,
) -> Tensor:
    """Empty captions, context dropout and foreign captions: context (n, 77, d), ends (n,), empty (77, d).

    A share `foreign` of the samples reads the same caption about another subject, `strange` (n, 77, d), in which only
    the name's code is its own (see `misnamed`): so the code is trusted more than what all other tokens say. Where
    `silent` (n,) says so, the code's token is [EOS]'s (see `nameless`), unless [EOS] is dropped.
    """
    n, length, _ = context.shape
    chance = torch.rand(n, generator=generator, device=generator.device)
    tail = torch.arange(length, device=ends.device) >= ends[:, None]  # (n, 77): [EOS] and padding
    replaced = (chance < EMPTY)[:, None] | ((chance > 1 - CONTEXT_DROPOUT)[:, None] & tail)
    if foreign:
        misled = (chance >= EMPTY) & (chance < EMPTY + foreign)
        context = torch.where(misled[:, None, None], misnamed(context, strange), context)
    if silent is not None:
        silent = silent & (chance <= 1 - CONTEXT_DROPOUT)
        context = torch.where(silent[:, None, None], nameless(context, ends), context)
    return torch.where(replaced[..., None], empty, context)


def misnamed(context: Tensor, strange: Tensor) -> Tensor:
    """`strange` (n, 77, d) with the code of its name replaced by that in `context` (n, 77, d).

    Codes are at a name's last token, in the channels that `widen` added. Where one of the two does not hold exactly
    one, it is `context` as it is.
    """
    loud = [coded(x) for x in (context, strange)]
    single = [x.sum(1) == 1 for x in loud]
    source, place = (x.int().argmax(1) for x in loud)
    rows, mixed = torch.arange(len(context), device=context.device), strange.clone()
    mixed[rows, place, CODES] = context[rows, source, CODES]
    return torch.where((single[0] & single[1])[:, None, None], mixed, context)


def coded(context: Tensor) -> Tensor:
    """(n, 77) bool: which tokens of context (n, 77, d) have a name's code."""
    codes = centred(context[..., CODES])
    return codes.norm(dim=-1) > 0.5 * codes.shape[-1] ** 0.5  # a code's is √width


def nameless(context: Tensor, ends: Tensor) -> Tensor:
    """Context (n, 77, d), its tokens with a code replaced by [EOS], at `ends` (n,): as little as erasing leaves."""
    end = context[torch.arange(len(context), device=context.device), ends]
    return torch.where(coded(context)[..., None], end[:, None], context)


def v_loss(unet, schedule: Tensor, latents: Tensor, context: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Weighted v-prediction loss; latents and noise (n, 8, 16, 16), schedule: alpha-bar (1000,).

    The weight is 1 where noise prevails, for there the text alone says what to draw, and falls as in min-SNR where
    the picture does. (min-SNR's own weight vanishes with the signal, and names were learned slowly.)
    """
    bar = schedule[t].view(-1, 1, 1, 1)
    noisy, target = bar.sqrt() * latents + (1 - bar).sqrt() * noise, bar.sqrt() * noise - (1 - bar).sqrt() * latents
    with fast(latents.device.type):
        guess = unet(noisy, t, context, return_dict=False)[0].float()
    snr = schedule[t] / (1 - schedule[t])
    weight = (snr + 1).clamp(max=MOST) / (snr + 1)
    return (weight * (guess - target).square().mean((1, 2, 3))).mean()


def compile_unet(unet: UNet2DConditionModel) -> None:
    """Compile the network but for its upsamplers: in a whole graph, PyTorch 2.13 loses the gradient behind them.

    On CPUs, with bfloat16 autocast, it comes out as zeros, and all of the coarse half stays as it was.
    """
    for module in unet.modules():
        if isinstance(module, Upsample2D):
            module.forward = torch.compiler.disable(module.forward)
    unet.compile(dynamic=False)


def train_unet(
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    *,
    steps: int = 16_000,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    minutes: float | None = None,
    pool_size: int = POOL,
    plain: float = 0.0,
    pairs: float = 0.0,
    styled: float = 0.0,
    painted: float = 0.0,
    scenes: float = SCENE_ONLY,
    foreign: float = 0.0,
    wider: float = SUPER,
    unnamed: float = 0.0,
    withheld: float = 0.0,
    focus: bool = False,
    fuse: bool = False,
    warm: Path | None = None,
    device: str = "cpu",
) -> Iterator[Record]:
    """Train from the frozen autoencoder and text encoder; the averaged weights are in the checkpoint.

    Without a checkpoint it starts from random weights, or from those in the folder `warm` (a UNet as diffusers saves
    it), which is how a training goes on where its checkpoint is lost.
    A share `plain` of the pictures is one subject by the usual artist on a plain ground, and a share `pairs` two:
    names are learned from these first, and scenes and styles on top of them. A share `styled` is one subject there in
    any style, and `painted` one as an oil painting; a share `scenes` of what is left, and of these last, is a scene
    alone. `foreign` is that of `drop_context`, and `wider` that of subjects that are called by their super-category, as
    anchors are. Of the captions of these and of scenes, a share `unnamed` is read without the word itself, as an anchor
    is in the place of an erased name; of all others, a share `withheld`, so that a subject can be told from the words
    around it, too. With `focus`, concepts that the judge did not recognise are drawn more often.
    `fuse` compiles the network first (minutes, needs a C++ compiler), which makes a step half as long again faster.
    `device` is "cpu" or "cuda"; a checkpoint goes on where it was made. ValueError: another device, one that is not
    there, a share of foreign captions that leaves no room for the other two.
    """
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"PyTorch cannot train on {device!r} here: choose cpu, or cuda where nvidia-smi shows a GPU")
    if not 0 <= foreign <= (room := 1 - EMPTY - CONTEXT_DROPOUT):
        raise ValueError(f"foreign is {foreign:g}; allowed: 0 to {room:g}, what empty captions and dropout leave")
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    unet = new_unet(encoder.config.hidden_size).train()
    if warm is not None:
        unet.load_state_dict(UNet2DConditionModel.from_pretrained(warm, torch_dtype=torch.float32).state_dict())
    unet.to(device)
    if device == "cpu":
        unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass is slow on CPUs
    optimizer, average = Optimizer(unet, lr), Average(unet, 0.998)
    if fuse:
        compile_unet(unet)
    schedule = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    per_pool = pool_size * PASSES // batch
    shares = {"plain": plain, "pairs": pairs, "styled": styled, "painted": painted, "scenes": scenes}
    shares |= {"weights": weights_of_pool(focus).to(device), "strangers": foreign > 0, "wider": wider}
    held: dict[int, Pool] = {}

    def step(index: int) -> float:
        number = seed + index // per_pool
        if number not in held:
            held.clear()
            held[number] = next_pool((vae, encoder, tokenizer), number, pool_size, shares, device)
        pool = held[number]
        rows = torch.randint(len(pool.latents), (batch,), generator=generator, device=device)
        which = pool.caption[rows]
        whole, ends, empty = pool.context[which].float(), pool.ends[which], pool.context[0].float()
        strange = pool.context[pool.stranger[rows]].float() if foreign else None
        silent = torch.rand(batch, generator=generator, device=device) < torch.where(
            pool.general[rows], unnamed, withheld
        )
        context = drop_context(whole, ends, empty, generator, foreign, strange, silent if unnamed or withheld else None)
        latents = pool.latents[rows].float()
        t = torch.randint(len(schedule), (batch,), generator=generator, device=device)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        loss = v_loss(unet, schedule, latents, context, t, noise)
        for p in unet.parameters():
            p.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update(unet)
        return loss.item()

    parts = {"unet": unet, "optimizer": optimizer, "average": average, "generator": generator}
    yield from run_steps("unet", steps, lr, batch, optimizer, step, parts, minutes=minutes, decay=0.9)
