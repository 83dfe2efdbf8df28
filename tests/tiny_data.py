"""A data folder like macelib's own, with small random models in place of the shipped ones."""

import json
import shutil
from pathlib import Path

import torch
from factory.judge import labels
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    ResNetConfig,
    ResNetForImageClassification,
)

from macelib.files import data_folder
from macelib.models.tiny import tiny_pipeline, tiny_tokenizer


def tiny_judge(names: list[str]) -> ResNetForImageClassification:
    """A random judge with these labels."""
    torch.manual_seed(0)
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8],
            depths=[1],
            layer_type="basic",
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )
    ).eval()


def tiny_clip() -> tuple[CLIPModel, CLIPProcessor]:
    """A random CLIP that sees 64-pixel pictures, and its processor."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = common | {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = common | {"image_size": 64, "patch_size": 32}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    pictures = CLIPImageProcessor(**size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return model, CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)


def tiny_data(folder: Path) -> Path:
    """Fill the folder: mini-sd, mini-judge, mini-clip; lists and artwork are the real ones, captions a twentieth."""
    tiny_pipeline("sd", width=384, channels=8).save_pretrained(folder / "mini-sd")  # of mini-SD's family
    tiny_judge(labels()).save_pretrained(folder / "mini-judge")
    model, processor = tiny_clip()
    model.save_pretrained(folder / "mini-clip")
    processor.save_pretrained(folder / "mini-clip")
    for name in ("attacks", "protocols"):
        (folder / name).symlink_to(data_folder() / name)
    (folder / "world").mkdir()
    for path in (data_folder() / "world").iterdir():
        (folder / "world" / path.name).symlink_to(path)
    captions = json.loads((folder / "world" / "captions.json").read_text(encoding="utf-8"))["captions"]
    (folder / "world" / "captions.json").unlink()
    (folder / "world" / "captions.json").write_text(json.dumps({"captions": captions[::20]}), encoding="utf-8")
    for name in ("studies", "results"):
        shutil.copytree(data_folder() / name, folder / name)  # something may be recorded there
    return folder
