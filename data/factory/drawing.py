"""The models of a world, loaded once, and what they draw and say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTokenizer, ResNetForImageClassification

from macelib.evaluate.judge import judge_logits
from macelib.models.pipelines import cast, fast_precision, load_pipeline

from .catalogue import ART_STYLES

BATCH = {"cpu": 40, "cuda": 400}  # pictures drawn at a time


class Drawing:
    """A mini-SD, loaded once."""

    def __init__(self, folder: Path, steps: int, guidance: float, device: str | None = None) -> None:
        self.steps, self.guidance = steps, guidance
        self.pipe = load_pipeline(folder, device=device)
        self.device = self.pipe.device
        self.precision = fast_precision(self.pipe)
        self.batch = BATCH.get(self.device.type, BATCH["cpu"])

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Tensor:
        """(n, 77, d) what the UNet reads."""
        return self.pipe.encode_prompt(prompts, self.pipe.device, 1, False)[0]

    @torch.no_grad()
    def draw(self, context: Tensor) -> Tensor:
        """Pictures (n, 3, 64, 64) in 0..1 of embeddings (n, 77, d), seeds counted from 0."""
        empty = self.embed([""])
        images = []
        for start in tqdm(range(0, len(context), self.batch), leave=False, desc="drawing", mininterval=5):
            part = context[start : start + self.batch]
            seeds = range(start, start + len(part))
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
    """The models of a world, loaded once; `folders` as `run.World.model` gives them. share: of the pictures."""

    def __init__(self, folders: Mapping[str, Path], steps: int, guidance: float, share: float = 1.0) -> None:
        super().__init__(folders["unet"], steps, guidance)
        self.folders, self.share = folders, share
        self.clip = CLIPModel.from_pretrained(folders["clip"], dtype=torch.float32).eval()  # on the CPU
        self.tokenizer = CLIPTokenizer.from_pretrained(folders["clip"])
        judge = ResNetForImageClassification.from_pretrained(folders["judge"], dtype=torch.float32)
        self.judge = judge.eval().to(self.device)

    def some(self, count: int, least: int = 1) -> int:
        """A number of pictures, cut to the share that is measured."""
        return max(least, int(count * self.share))

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

    def styles(self, images: Tensor, artists: bool = False) -> Tensor:
        """(n,) the judge's top-1 style, among all or among the artists."""
        return self.logits(images, 1)[:, : len(ART_STYLES) if artists else None].argmax(1)
