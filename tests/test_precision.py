"""An erased model in bf16: keys and values of the text are those of float32, so that what stays is drawn alike."""

import pytest
import torch
from brute import relative
from test_erasure import make, weights

from macelib import MaceError
from macelib.models.attention import trace
from macelib.models.entrances import cross_attention, kv_names
from macelib.models.pipelines import cast
from macelib.models.sample import generate
from macelib.models.swap import originals, write
from macelib.models.text import encode
from macelib.models.tiny import tiny_pipeline

PROMPT = "a photo of the castle"


def magnified(pipe, size):
    """The weights W, and W + size 1 vᵀ, v the direction of which a text has least: large entries that cancel."""
    v, W = torch.linalg.svd(encode(pipe, [PROMPT])[0])[2][-1], weights(pipe)
    return W, {name: w + size * torch.outer(torch.ones(len(w)), v) for name, w in W.items()}


def keys_and_values(pipe, autocast):
    """Output of every to_k and to_v while a picture is drawn."""
    seen, modules = {}, {name: pipe.unet.get_submodule(name) for name in kv_names(pipe.unet)}
    hooks = [
        module.register_forward_hook(lambda _, args, out, name=name: seen.__setitem__(name, out.detach().clone()))
        for name, module in modules.items()
    ]
    with cast(pipe, autocast):
        generate(pipe, PROMPT, [0], steps=1)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("autocast", ["bf16", "fp16"])
def test_keys_and_values_are_those_of_float32(kind, autocast):
    if autocast == "fp16" and kind == "sdxl":
        pytest.skip("one layout is enough for float16 on a CPU")
    pipe = tiny_pipeline(kind)
    W, new = magnified(pipe, 20.0) if kind == "sd" else (originals(pipe.unet), originals(pipe.unet))
    write(pipe.unet, W, new)
    exact, fast = keys_and_values(pipe, None), keys_and_values(pipe, autocast)
    assert max(relative(fast[name], exact[name]) for name in exact) < 1e-5
    name = next(iter(new))
    low, e = torch.bfloat16, encode(pipe, [PROMPT])[0]
    rounded = (e.to(low).double() @ new[name].to(low).double().T).float()
    assert relative(rounded, e @ new[name].T) > (0.02 if kind == "sd" else 1e-3)  # what it would be otherwise


def test_the_rest_is_still_computed_in_bf16_and_everything_is_put_back():
    pipe = tiny_pipeline("sd")
    layer, seen = next(iter(cross_attention(pipe.unet).values())), []
    hook = layer.to_q.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    own = layer.to_k.forward
    with cast(pipe, "bf16"), cast(pipe, "bf16"), trace(pipe):
        generate(pipe, PROMPT, [0], steps=1)
    assert set(seen) == {torch.bfloat16}
    assert "forward" not in layer.to_k.__dict__ and layer.to_k.forward == own
    assert "forward" not in pipe.text_encoder.__dict__
    hook.remove()
    with pytest.raises(MaceError, match="autocast is 'int8'"), cast(pipe, "int8"):
        pass


def test_weights_too_large_for_bfloat16_are_said(caplog):
    pipe = tiny_pipeline("sd")
    pipe.unet.to(torch.bfloat16)
    erasure = make(pipe)
    erasure.apply(pipe)
    assert "eight bits" not in caplog.text
    large = erasure.of([p for p in erasure.parts])
    large.__dict__["lora"] = {name: (500 * B, D) for name, (B, D) in erasure.lora.items()}
    large.apply(pipe)
    assert "times as large as the original ones, and bfloat16 keeps eight bits" in caplog.text
    erasure.remove(pipe)
