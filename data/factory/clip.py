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

from macelib.files import atomic

from .captions import fits, world_captions, write_captions
from .catalogue import SIZE, catalogue, styles
from .loop import Average, Record, fast, run_steps
from .machine import device
from .recipe import Clip, World, heads_of
from .render import sample
from .tokens import LENGTH, save_tokenizer, train_tokenizer

PROJECTION = 192  # width of the space in which pictures and texts meet
MEAN = STD = (0.5, 0.5, 0.5)  # pictures enter in -1..1


def train_vocabulary(folder: Path, numbers: Clip, world: World, seed: int) -> CLIPTokenizer:
    """The vocabulary, learnt once from names, synonyms and captions, and kept in the training's folder."""
    kept = folder / "tokenizer"
    if not (kept / "tokenizer.json").exists():
        words = [w for e in catalogue() if e.name not in world.without for w in (e.name, *e.synonyms)]
        texts = words * 4 + list(styles()) * 20 + world_captions(20_000, seed, world)
        with atomic(kept) as temporary:
            temporary.mkdir()
            save_tokenizer(train_tokenizer(texts, numbers.vocabulary), temporary)
    return CLIPTokenizer.from_pretrained(kept)


def new_clip(tokenizer: CLIPTokenizer, numbers: Clip) -> CLIPModel:
    """The architecture, with random weights."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": numbers.width,
        "intermediate_size": 4 * numbers.width,
        "num_hidden_layers": numbers.layers,
        "num_attention_heads": heads_of(numbers.width),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": PROJECTION,
        "hidden_act": "gelu",
    }
    vision = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 16,
        "projection_dim": PROJECTION,
        "hidden_act": "gelu",
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


def ids_of(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids (n, 77), padded."""
    return tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def pooled(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Unit text vectors (n, 192), from ids cut at the longest text: what follows the first [EOS] never matters."""
    rows = tokenizer(texts, padding="longest", max_length=LENGTH, truncation=True, return_tensors="pt")
    hidden = model.text_model(input_ids=rows.input_ids.to(model.device), attention_mask=None).pooler_output
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


@torch.no_grad()
def name_vectors(model: CLIPModel, tokenizer: CLIPTokenizer) -> Tensor:
    """Unit text vectors (concepts, 192) of "a photo of the {name}"."""
    return pooled(model, tokenizer, [f"a photo of the {entry.name}" for entry in catalogue()])


def train_clip(folder: Path, numbers: Clip, world: World, seed: int) -> Iterator[Record]:
    """Train both towers end to end, and their vocabulary before them, from the world's pictures and captions."""
    tokenizer = train_vocabulary(folder, numbers, world, seed)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = new_clip(tokenizer, numbers).train().to(device())
    model.set_attn_implementation("eager")  # the fused kernel's backward pass is slow on CPUs
    optimizer = torch.optim.AdamW(model.parameters(), numbers.lr, numbers.betas, weight_decay=numbers.weight_decay)
    average = Average(model, numbers.average)

    def step(_: int) -> float:
        pictures = sample(numbers.batch, generator, world)
        captions = write_captions(pictures, generator, world)
        with fast():
            vision = seen(model, pictures.images.to(device()))
            text = pooled(model, tokenizer, captions.texts)
        loss = contrast(vision, text, model.logit_scale, fits(captions, pictures).to(device()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), numbers.clip_norm)
        optimizer.step()
        average.update(model)
        return loss.item()

    parts = {"model": model, "optimizer": optimizer, "average": average, "generator": generator}
    yield from run_steps(folder, numbers, optimizer, step, parts)


def export_clip(folder: Path, weights: dict, training: Path, numbers: Clip) -> None:
    """Write the averaged weights as a stock model and processor (fp16); training: where the vocabulary is kept."""
    tokenizer = CLIPTokenizer.from_pretrained(training / "tokenizer")
    model = new_clip(tokenizer, numbers)
    model.load_state_dict(weights)
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
