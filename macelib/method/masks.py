"""Where the concept is in its training images: masks M of Eq. 3, from one of several sources."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..concepts import Concept, sample_prompt
from ..errors import MaceError, first_line
from ..models.attention import resize, trace
from ..models.denoise import Levels, denoise
from ..models.entrances import denoiser, part_of
from ..models.finite import check_finite
from ..models.offload import runs_on
from ..models.sample import encode_images, generate, image_size
from ..models.text import added_conditions, encode, spans

log = logging.getLogger(__name__)
SOURCES = ("attention", "drawing", "grounding", "alpha", "full")
NOISE_LEVELS = (0.2, 0.3, 0.4, 0.5)  # of the noise schedule, at which the attention is read
AREA = (0.005, 0.95)  # a mask that covers less or more of the image has found nothing
CONTRAST = 0.05  # least (max - min) / mean of an attention map that has found something
SECONDS = 5  # that the hub has to answer whether a model is there
DETECTOR, SEGMENTER = "IDEA-Research/grounding-dino-tiny", "facebook/sam-vit-base"


def make_masks(
    source: str,
    pipe,
    concept: Concept,
    images: Sequence[Image.Image],
    *,
    prompts: Sequence[str] | None = None,
    known: Tensor | Sequence[Image.Image] | None = None,
    maps: Sequence[Tensor] | None = None,
    fallback: Sequence[str] = ("attention", "full"),
    seed: int = 0,
    detect: Callable[[Image.Image, str], Tensor | None] | None = None,
) -> Tensor:
    """Masks (n, 1, H, W), float32, 1 where the concept is; H, W are the images' size in pixels.

    source: "attention" (the model's own maps of the concept's tokens, in passes of their own), "drawing" (the same out
    of the passes that drew the images: `maps`, see `images.read_maps`), "grounding" (GroundingDINO + SAM, or `detect`),
    "alpha" (`known`: masks, or the same pictures without the concept; or the images' own alpha), "full" (ones, and
    always for a style). An image in which nothing is found is reported through logging and left to the sources of
    `fallback` in turn. MaceError: unknown source, images of several sizes, nothing found and no fallback left.
    """
    if unknown := [name for name in (source, *fallback) if name not in SOURCES]:
        raise MaceError(f"There is no mask source {unknown[0]!r}: choose from {', '.join(SOURCES)}.")
    if len({image.size for image in images}) != 1:
        raise MaceError(f"The images of {concept.name!r} must have one size and be at least one: resize them.")
    prompts = list(prompts or [sample_prompt(concept)] * len(images))
    finders = {
        "attention": lambda some: _attention(
            pipe, concept, [images[i] for i in some], [prompts[i] for i in some], seed
        ),
        "drawing": lambda some: [_cut(_map(maps, i), images[i].size[::-1]) for i in some],
        "grounding": lambda some: [(detect or grounding(pipe.device))(images[i], concept.name) for i in some],
        "alpha": lambda some: [_alpha(images[i], known, i) for i in some],
        "full": lambda some: [torch.ones(images[i].size[::-1]) for i in some],
    }
    order = ["full"] if concept.kind == "style" else list(dict.fromkeys([source, *fallback]))
    masks: dict[int, Tensor] = {}
    for name, following in zip(order, [*order[1:], None], strict=True):
        some = [i for i in range(len(images)) if i not in masks]
        found = finders[name](some) if some else []
        masks |= {i: mask for i, mask in zip(some, found, strict=True) if mask is not None and _plausible(name, mask)}
        if lost := [i for i in some if i not in masks]:
            _report(concept, name, lost, following)
    return torch.stack([masks[i].float()[None] for i in range(len(images))])


def _plausible(source: str, mask: Tensor) -> bool:
    """Whether a mask has found something: neither nothing nor, where that says nothing, everything."""
    area = float(mask.float().mean())
    return area > 0 if source in ("alpha", "full") else AREA[0] <= area <= AREA[1]


def _report(concept: Concept, source: str, lost: list[int], following: str | None) -> None:
    where = ", ".join(map(str, lost))
    if following is None:
        raise MaceError(f"{source} found no {concept.name!r} in image {where}: allow a fallback, such as full.")
    log.warning("%s found no %r in image %s: the mask there comes from %s.", source, concept.name, where, following)


def _alpha(image: Image.Image, known, i: int) -> Tensor | None:
    """Mask (H, W) that is known: given, the difference to a background, or the image's own alpha."""
    if isinstance(known, Tensor):
        return resize(known[i].float().reshape(1, *known.shape[-2:]), image.size[::-1])[0]
    if known is not None:
        pixels = [torch.from_numpy(np.array(p.convert("RGB"))).int() for p in (image, known[i])]
        return ((pixels[0] - pixels[1]).abs().amax(-1) > 8).float()  # 8 of 255: more than rounding
    if "A" in image.getbands():
        return torch.from_numpy(np.array(image.getchannel("A"))).float() / 255
    raise MaceError("The mask source alpha needs `known` masks or backgrounds, or images with an alpha channel.")


# --- attention


def _attention(pipe, concept: Concept, images, prompts: Sequence[str], seed: int) -> list[Tensor | None]:
    """Otsu's cut through the concept's attention maps; None where a map is flat."""
    return [_cut(heat, images[0].size[::-1]) for heat in attention_maps(pipe, concept.name, images, prompts, seed)]


def _cut(heat: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Mask (H, W) of a map (h, w), by Otsu's cut; None where it is flat."""
    flat = float(heat.max() - heat.min()) < CONTRAST * float(heat.mean())
    return None if flat else (resize(heat[None], size)[0] > otsu(heat)).float()


def _map(maps: Sequence[Tensor] | None, i: int) -> Tensor:
    if maps is None:
        raise MaceError("The mask source drawing needs `maps` that were recorded while the images were drawn.")
    return maps[i]


def read_at(pipe, latents: tuple[int, int]) -> list[float]:
    """The timesteps of NOISE_LEVELS as the scheduler counts them, the noisiest first; latents: (h, w)."""
    levels = Levels(pipe, latents)
    return [float(levels.timesteps[int(level * len(levels))]) for level in sorted(NOISE_LEVELS, reverse=True)]


@torch.no_grad()
def attention_maps(
    pipe, phrase: str, images: Sequence[Image.Image], prompts: Sequence[str], seed: int = 0, batch: int = 8
) -> Tensor:
    """The phrase's cross-attention (n, h, w) in given images, on the CPU: read while the model denoises them a little.

    Mean over layers, heads, NOISE_LEVELS and the phrase's tokens. MaceError where a prompt does not hold the phrase.
    """
    own = _named(pipe, prompts, [phrase] * len(prompts))
    place = runs_on(denoiser(pipe))
    g, model, heats = torch.Generator().manual_seed(seed), denoiser(pipe), []
    added = added_conditions(pipe, list(prompts), images[0].size[::-1])
    for start in range(0, len(images), batch):
        some = slice(start, start + batch)
        x = encode_images(pipe, images[some]).cpu()  # (m, c, h, w)
        e = encode(pipe, list(prompts[some])).to(place, model.dtype)
        extra = added and {name: value[some].to(place, model.dtype) for name, value in added.items()}
        levels = Levels(pipe, tuple(x.shape[-2:]))
        with trace(pipe, guided=False) as maps:
            for level in sorted(NOISE_LEVELS, reverse=True):
                t = int(level * len(levels))
                noisy = levels.noised(x, torch.randn(x.shape, generator=g), t)
                denoise(model, noisy.to(place, model.dtype), levels.timesteps[t], e, extra)
        heats += [maps.map(positions, image=i).cpu() for i, positions in enumerate(own[some])]
    check_finite(pipe, part_of(pipe), f"The attention of {phrase!r}", torch.stack(heats))
    return torch.stack(heats)


def drawn_and_read(
    pipe, phrases: Sequence[str], prompts: Sequence[str], seeds: Sequence[int], **options
) -> tuple[list[Image.Image], list[Tensor]]:
    """Pictures, and the attention (h, w) of each to its phrase while it was drawn: one batch, no pass more.

    Mean as in `attention_maps`, over the drawing's own steps that are nearest to NOISE_LEVELS; on the CPU.
    options: of `generate`. MaceError where a prompt does not hold its phrase.
    """
    own = _named(pipe, prompts, phrases)
    height, width = image_size(pipe, options.get("size"))
    at = read_at(pipe, (height // pipe.vae_scale_factor, width // pipe.vae_scale_factor))
    with trace(pipe, at=at) as maps:
        images = generate(pipe, prompts, seeds, **options)
    heats = [maps.map(positions, image=i).cpu() for i, positions in enumerate(own)]
    check_finite(pipe, part_of(pipe), f"The attention of {', '.join(dict.fromkeys(phrases))}", torch.stack(heats))
    return images, heats


def _named(pipe, prompts: Sequence[str], phrases: Sequence[str]) -> list[list[int]]:
    """Positions of the tokens of each prompt's phrase; MaceError where a prompt does not hold it."""
    own = [spans(pipe, prompt, phrase) for prompt, phrase in zip(prompts, phrases, strict=True)]
    if [] in own:
        i = own.index([])
        raise MaceError(f"The prompt {prompts[i]!r} does not name {phrases[i]!r}: give prompts that do.")
    return own


def otsu(values: Tensor, bins: int = 128) -> float:
    """The threshold that separates the values into two classes of least variance (Otsu 1979)."""
    low, high = float(values.min()), float(values.max())
    count = torch.histc(values.float(), bins, low, high).double()
    centre = low + (torch.arange(bins, dtype=torch.float64) + 0.5) * (high - low) / bins
    below, mass = count.cumsum(0), (count * centre).cumsum(0)
    above = below[-1] - below
    between = below * above * (mass / below.clamp(min=1) - (mass[-1] - mass) / above.clamp(min=1)).square()
    return low + (int(between.argmax()) + 1) * (high - low) / bins


# --- grounding


class Grounding:
    """GroundingDINO finds boxes of a phrase, SAM cuts them out: image and phrase to a mask (H, W), or None."""

    def __init__(self, processor, detector, sam_processor, sam, threshold: float = 0.3, text_threshold: float = 0.25):
        self.processor, self.detector, self.sam_processor, self.sam = processor, detector, sam_processor, sam
        self.threshold, self.text_threshold = threshold, text_threshold

    @torch.no_grad()
    def __call__(self, image: Image.Image, phrase: str) -> Tensor | None:
        image = image.convert("RGB")
        boxes = self.boxes(image, phrase)
        if not len(boxes):
            return None
        inputs = self.sam_processor(image, input_boxes=[boxes.tolist()], return_tensors="pt").to(self.sam.device)
        outputs = self.sam(**inputs, multimask_output=False)
        sizes = inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        masks = self.sam_processor.image_processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)[0]
        return masks.flatten(0, 1).any(0).float()  # (boxes, 1, H, W): their union

    def boxes(self, image: Image.Image, phrase: str) -> Tensor:
        """Boxes (m, 4) of the phrase in pixels: left, top, right, bottom."""
        text = phrase.lower().strip().rstrip(".") + "."  # the form that the detector was trained on
        inputs = self.processor(images=image, text=text, return_tensors="pt").to(self.detector.device)
        found = self.processor.post_process_grounded_object_detection(
            self.detector(**inputs),
            inputs["input_ids"],
            threshold=self.threshold,
            text_threshold=self.text_threshold,
            target_sizes=[image.size[::-1]],
        )
        return found[0]["boxes"].cpu()


@lru_cache(maxsize=1)
def grounding(device: str | torch.device, detector: str = DETECTOR, segmenter: str = SEGMENTER) -> Grounding:
    """The detector and the segmenter, loaded once; MaceError where they cannot be had."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, SamModel, SamProcessor

    with _loading(detector, segmenter):
        found = AutoModelForZeroShotObjectDetection.from_pretrained(detector).to(device).eval()
        sam = SamModel.from_pretrained(segmenter).to(device).eval()
        return Grounding(AutoProcessor.from_pretrained(detector), found, SamProcessor.from_pretrained(segmenter), sam)


def check_grounding(detector: str = DETECTOR, segmenter: str = SEGMENTER) -> None:
    """MaceError where the detector or the segmenter is neither on disk nor within reach; loads nothing."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    for model in (detector, segmenter):
        if not (Path(model).is_dir() or isinstance(try_to_load_from_cache(model, "config.json"), str)):
            with _loading(detector, segmenter):
                if constants.HF_HUB_OFFLINE:
                    raise OSError("HF_HUB_OFFLINE is set, and they are not on disk")
                urlopen(hf_hub_url(model, "config.json"), timeout=SECONDS).close()


@contextmanager
def _loading(detector: str, segmenter: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ImportError) as error:
        raise MaceError(
            f"The mask source grounding needs {detector} and {segmenter}, which cannot be loaded "
            f"({first_line(error)}): connect to the hub once, or choose the source attention."
        ) from error
