"""mini-judge: an independent classifier of concepts and styles, a stock `ResNetForImageClassification`.

One label list holds both heads ("concept:frog", "style:noto"). It shares no weights with the other models and is
trained on other variations than the generator saw: turned, blurred, noisy, recoloured, coarse and cropped pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from macelib.evaluate.judge import judge_logits
from macelib.models.mini import crop_half

from .catalogue import catalogue, styles
from .loop import Average, Record, fast, run_steps
from .machine import device
from .recipe import Judge, World
from .render import Batch, sample, uniform

TURN = 0.2  # radians


def labels() -> list[str]:
    """All labels, concepts first."""
    return [f"concept:{e.name}" for e in catalogue()] + [f"style:{s}" for s in styles()]


def new_judge() -> ResNetForImageClassification:
    """The architecture, with random weights."""
    config = ResNetConfig(
        embedding_size=48,
        hidden_sizes=[48, 96, 192, 320],
        depths=[1, 2, 2, 1],
        layer_type="basic",
        downsample_in_first_stage=False,
        id2label=dict(enumerate(labels())),
        label2id={label: i for i, label in enumerate(labels())},
    )
    return ResNetForImageClassification(config)


def disturb(x: Tensor, generator: torch.Generator) -> Tensor:
    """Coarsen, blur, recolour and add noise to pictures (n, 3, 64, 64) in 0..1, each with its own strength."""
    n = len(x)
    coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pick = torch.rand(n, 1, 1, 1, generator=generator)
    x = torch.where(pick < 0.2, coarse, torch.where(pick < 0.4, soft, x))
    gain = uniform(3 * n, 0.8, 1.2, generator).view(n, 3, 1, 1)
    shift = uniform(3 * n, -0.1, 0.1, generator).view(n, 3, 1, 1)
    noise = torch.randn(x.shape, generator=generator) * uniform(n, 0, 0.08, generator).view(n, 1, 1, 1)
    return ((x - 0.5) * gain + 0.5 + shift + noise).clamp(0, 1)


def halves(batch: Batch) -> Batch:
    """Cut two-subject pictures to their left subject, enlarged to full size, as the two-concept test does."""
    two = batch.second >= 0
    left = crop_half(batch.images, 0)
    batch.images = torch.where(two.view(-1, 1, 1, 1), left, batch.images)
    return batch


def train_judge(folder: Path, numbers: Judge, world: World, seed: int) -> Iterator[Record]:
    """Train both heads together; a scene that no artist drew says nothing to the head of styles."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = new_judge().train().to(device())
    optimizer = torch.optim.AdamW(judge.parameters(), numbers.lr, numbers.betas, weight_decay=numbers.weight_decay)
    average = Average(judge, numbers.average)

    def step(_: int) -> float:
        batch = halves(sample(numbers.batch, generator, world, turn=TURN))
        with fast():
            concept, style = judge_logits(judge, disturb(batch.images, generator).to(device()))
        drawn = F.cross_entropy(concept, batch.concept.to(device()), label_smoothing=0.05)
        hand = F.cross_entropy(style, batch.style.to(device()), label_smoothing=0.05, ignore_index=-1)
        loss = drawn + 0.5 * hand
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), numbers.clip_norm)
        optimizer.step()
        average.update(judge)
        return loss.item()

    parts = {"judge": judge, "optimizer": optimizer, "average": average, "generator": generator}
    yield from run_steps(folder, numbers, optimizer, step, parts)


def export_judge(folder: Path, weights: dict) -> None:
    """Write the averaged weights as a stock image classifier (fp16)."""
    judge = new_judge()
    judge.load_state_dict(weights)
    judge.half().save_pretrained(folder)
