import pytest
import torch

from macelib.errors import MaceError
from macelib.models.text import embedding_size, encode, text_hash, tokenizers
from macelib.models.tiny import tiny_pipeline

PROMPTS = ["a ship", "the sky", "", "a ship", "Café's x-ray"]


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl"])
def test_equals_what_the_pipeline_gives_its_unet(kind):
    pipe = tiny_pipeline(kind)
    e = encode(pipe, PROMPTS)
    stock = pipe.encode_prompt(
        PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]  # fmt: skip
    assert e.shape == (5, 77, embedding_size(pipe)) and e.dtype == torch.float32 and not e.requires_grad
    assert (e - stock).abs().max() <= 1e-6
    assert embedding_size(pipe) == pipe.unet.config.cross_attention_dim
    assert len(tokenizers(pipe)) == (2 if kind == "sdxl" else 1)


def test_padding_is_the_tokenizer_s():
    pipe = tiny_pipeline("sd2")
    assert pipe.tokenizer.pad_token_id != pipe.tokenizer.eos_token_id
    e = encode(pipe, ["a ship"])
    pipe.tokenizer.pad_token = pipe.tokenizer.eos_token
    assert (encode(pipe, ["a ship"]) - e).abs().max() > 1e-2


def test_each_distinct_prompt_is_encoded_once_whatever_the_batch():
    pipe, read = tiny_pipeline(), []
    pipe.text_encoder.register_forward_pre_hook(lambda _, args: read.append(len(args[0])))
    one = encode(pipe, PROMPTS * 3, batch=2)
    assert read == [2, 2] and one.shape[0] == 15
    assert (one - encode(pipe, PROMPTS * 3)).abs().max() <= 1e-6
    assert encode(pipe, []).shape == (0, 77, embedding_size(pipe))


def test_the_hash_sees_weights_and_vocabulary():
    pipe = tiny_pipeline()
    before = text_hash(pipe)
    assert before == text_hash(tiny_pipeline())
    assert before != text_hash(tiny_pipeline(length=76)) and before != text_hash(tiny_pipeline(seed=1))
    with torch.no_grad():
        next(pipe.text_encoder.parameters())[0, 0] += 1
    assert before != text_hash(pipe)


def test_refusals():
    with pytest.raises(MaceError, match="has 102 tokens"):
        encode(tiny_pipeline(), ["a ship", "a " * 100])
    pipe = tiny_pipeline()
    pipe.text_encoder.config.use_attention_mask = True
    with pytest.raises(MaceError, match="masks its padding"):
        encode(pipe, ["a ship"])
    with pytest.raises(MaceError, match="no Stable Diffusion"):
        encode(object(), ["a ship"])
