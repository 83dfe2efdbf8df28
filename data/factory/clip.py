"""mini-CLIP: a stock `CLIPModel` trained contrastively on the world's pictures and captions.

Its text tower is mini-SD's text encoder. The targets count every caption of the batch that is true of a picture as a
positive (`captions.fits`), since a batch holds many pictures of the same concept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from macelib.files import data_folder

from .captions import fits, world_captions, write_captions
from .catalogue import SIZE, catalogue, styles
from .loop import Average, Optimizer, Record, averaged, fast, run_steps, work_folder
from .render import sample
from .tokens import LENGTH, save_tokenizer, train_tokenizer

WIDTH, LAYERS = 192, 4  # of the text tower, before `widen`
MEAN = STD = (0.5, 0.5, 0.5)  # pictures enter in -1..1


def tokenizer_of_training() -> CLIPTokenizer:
    """The vocabulary of the training under way, learnt once from names, synonyms and captions."""
    folder = work_folder("clip") / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        words = [w for e in catalogue() for w in (e.name, *e.synonyms)] * 4 + list(styles()) * 20
        tokenizer = train_tokenizer(words + world_captions(20_000)[0])
        temporary = folder.with_suffix(".tmp")
        save_tokenizer(tokenizer, temporary)
        temporary.rename(folder)
    return CLIPTokenizer.from_pretrained(folder)


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The architecture, with random weights."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": WIDTH,
        "hidden_act": "gelu",
    }
    vision = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 16,
        "projection_dim": WIDTH,
        "hidden_act": "gelu",
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def ids_of(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids (n, 77), padded."""
    return tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def pooled(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Unit text vectors (n, 192), from ids cut at the longest text: what follows the first [EOS] never matters."""
    rows = tokenizer(texts, padding="longest", max_length=LENGTH, truncation=True, return_tensors="pt")
    hidden = model.text_model(input_ids=rows.input_ids, attention_mask=None).pooler_output
    return F.normalize(model.text_projection(hidden).float(), dim=-1)


def seen(model: CLIPModel, images: Tensor) -> Tensor:
    """Unit image vectors (n, 192) of images (n, 3, 64, 64) in 0..1."""
    hidden = model.vision_model(pixel_values=images * 2 - 1).pooler_output
    return F.normalize(model.visual_projection(hidden).float(), dim=-1)


def contrast(images: Tensor, texts: Tensor, scale: Tensor, ok: Tensor) -> Tensor:
    """Cross-entropy both ways; the target is uniform over all true pairs, ok (n, n) bool."""
    logits = scale.exp().clamp(max=100) * images @ texts.T  # (n, n)
    target = ok.float()
    rows = -(F.log_softmax(logits, 1) * target / target.sum(1, keepdim=True)).sum(1).mean()
    columns = -(F.log_softmax(logits, 0) * target / target.sum(0, keepdim=True)).sum(0).mean()
    return (rows + columns) / 2


def started(shipped: bool) -> tuple[CLIPModel, CLIPTokenizer]:
    """What a training begins with: the shipped model in fp32, or random weights; and the tokenizer."""
    if shipped:
        folder = data_folder() / "mini-clip"
        return CLIPModel.from_pretrained(folder, dtype=torch.float32), CLIPTokenizer.from_pretrained(folder)
    tokenizer = tokenizer_of_training()
    return new_clip(tokenizer), tokenizer


@torch.no_grad()
def name_vectors(model: CLIPModel, tokenizer: CLIPTokenizer) -> Tensor:
    """Unit text vectors (concepts, 192) of "a photo of the {name}"."""
    return pooled(model, tokenizer, [f"a photo of the {entry.name}" for entry in catalogue()])


def train_clip(
    *,
    steps: int = 800,
    batch: int = 384,
    lr: float = 1e-3,
    seed: int = 0,
    minutes: float | None = None,
    image_only: bool = False,
) -> Iterator[Record]:
    """Train both towers and their vocabulary from the world.

    `image_only` goes on from the shipped model with the text tower, and so mini-SD's text encoder, as it is: a
    picture is then also told from all other concepts' names, whose vectors do not change any more.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + image_only)
    model, tokenizer = started(image_only)
    model.train().set_attn_implementation("eager")  # the fused kernel's backward pass is slow on CPUs
    if image_only:
        model.text_model.requires_grad_(False)
        model.text_projection.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = Optimizer(model, lr) if image_only else torch.optim.AdamW(trained, lr, (0.9, 0.98), weight_decay=0.05)
    average, names = Average(model, 0.995), name_vectors(model, tokenizer) if image_only else None

    def step(_: int) -> float:
        pictures = sample(batch, generator)
        captions = write_captions(pictures, generator)
        with fast():
            vision = seen(model, pictures.images)
            with torch.set_grad_enabled(not image_only):
                text = pooled(model, tokenizer, captions.texts)
        loss = contrast(vision, text, model.logit_scale, fits(captions, pictures))
        if image_only:
            alone = pictures.second < 0
            logits = model.logit_scale.exp().clamp(max=100) * vision[alone] @ names.T
            loss = loss + F.cross_entropy(logits, pictures.concept[alone])
        for p in trained:
            p.grad = None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update(model)
        return loss.item()

    parts = {"model": model, "optimizer": optimizer, "average": average, "generator": generator}
    name = "clip-image" if image_only else "clip"
    yield from run_steps(name, steps, lr, batch, optimizer, step, parts, minutes=minutes, warmup=100, decay=0.8)


def export_clip(folder: Path) -> None:
    """Write the training's averaged weights as a stock model and processor (fp16)."""
    later = (work_folder("clip-image") / "checkpoint.pt").exists()
    model, tokenizer = started(later)
    model.load_state_dict(averaged("clip-image" if later else "clip"))
    save_clip(model, tokenizer, folder)


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a stock model and processor (fp16)."""
    model.half()
    for config in (model.config.text_config, model.config.vision_config):
        config.dtype = model.dtype  # stays that of loading otherwise
    model.save_pretrained(folder)
    processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=MEAN,
        image_std=STD,
    )
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
