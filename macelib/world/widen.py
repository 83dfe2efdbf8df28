"""mini-CLIP's text tower, twice as wide: new channels that tell names apart, and tails that say less of the subject.

A tower of 192 channels cannot hold 200 names so that one linear map erases a hundred and keeps the others: Stable
Diffusion has 768. Widening keeps what the trained tower says (its channels are the first half), adds a layer,
and fits that layer's neurons, and what all neurons write to the new channels, by regression on the activations:

- new channels, which every token that has read a name fills with that name's random code, in whatever sentence;
- a correction of [EOS] and padding, which moves what they say of the subject a part of the way to the mean over all
  subjects in the same sentence. The trained tower's tails say everything, and the concept's own tokens were never
  needed; Stable Diffusion's do not (Fig. 2 of the paper).

mini-SD's denoiser reads the new channels with weights that are zero: its pictures depend on the first half alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from .captions import ART, IN_ART, NAME_SCENE, TOGETHER, WORDINGS, on_scene, world_captions
from .catalogue import ART_STYLES, GROUPS, catalogue, styles
from .clip import ids_of, seen
from .loop import Average, Record, run_steps
from .render import sample
from .scenes import SCENES
from .styles import STYLES

WIDTH = 384  # channels of the wide tower
QUIET = 0.03  # scale of the new channels inside the tower, where they must not disturb the others
LOUD = 0.1  # gain of the last two channels, which let the others say less: a layer norm's output has a fixed length
TAIL_SHARE = 0.30  # share of what a tail says of its subject that is kept
SUBJECTS = 160  # that are put into the same sentence
OFFSETS = 3  # padding tokens of a sentence that are looked at, beside [EOS]
STAY = 30.0  # weight of captions' cosine distance from where they were, when the projection learns pictures' names
OLD = 10.0  # weight of the old channels' error beside that of the new ones


@torch.no_grad()
def grown(narrow: CLIPModel, width: int = WIDTH) -> CLIPModel:
    """The same function in a text tower of `width` channels, the old ones first and the new ones silent, and a layer.

    All that writes into the residual stream is centred, which layer norms cannot see; they then divide by a norm over
    more channels, which their gains make up for. Heads keep their width. New heads and all of the new layer are zero.
    """
    old = narrow.config.text_config
    d, head = old.hidden_size, old.hidden_size // old.num_attention_heads
    values = old.to_dict() | {
        "hidden_size": width,
        "num_attention_heads": width // head,
        "num_hidden_layers": old.num_hidden_layers + 1,
        "layer_norm_eps": old.layer_norm_eps * d / width,
    }
    vision, size = narrow.config.vision_config.to_dict(), narrow.config.projection_dim
    wide = CLIPModel(CLIPConfig(text_config=values, vision_config=vision, projection_dim=size))
    before = narrow.state_dict()
    for name, new in wide.state_dict().items():
        value = before.get(name)
        if not name.startswith("text_"):
            new.copy_(value)
            continue
        new.zero_()
        if value is None:  # the new layer, whose norms pass the old channels on
            if name.endswith("norm2.weight"):
                new[:d] = (d / width) ** 0.5
            continue
        if name.endswith(("out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias")):
            value = value - value.mean(0)  # over the channels that it writes
        elif "embedding" in name:
            value = value - value.mean(-1, keepdim=True)
        elif "norm" in name and name.endswith("weight"):
            value = value * (d / width) ** 0.5
        new[tuple(slice(n) for n in value.shape)] = value
    wide.text_model.final_layer_norm.weight[d:-2] = 1 / QUIET
    wide.text_model.final_layer_norm.weight[-2:] = LOUD
    return wide.float().eval()


def subjects() -> list[tuple[str, int]]:
    """What a sentence can be about, and its code: names and synonyms of a concept share one, super-categories too."""
    known = [(word, i) for i, e in enumerate(catalogue()) for word in (e.name, *e.synonyms)]
    wider = dict.fromkeys((*GROUPS.values(), *(e.anchor for e in catalogue())))
    taken = {word for word, _ in known}
    return known + [(w, len(catalogue()) + i) for i, w in enumerate(w for w in wider if w not in taken)]


def codes(width: int, seed: int = 0) -> Tensor:
    """(codes, width) random, of mean 0 and norm √width; the last is that of no subject: zero."""
    count = max(i for _, i in subjects()) + 1
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    rows = F.normalize(rows - rows.mean(1, keepdim=True), dim=1) * width**0.5
    return torch.cat([rows, torch.zeros(1, width)])


def sentence(rng: random.Random) -> str:
    """A caption with "{0}" where its subject goes, and "{1}" for a second, in the wordings of `captions`."""
    noun = rng.choice(("a {0}", "the {0}", "the {0}", "{0}"))
    text = rng.choice(TOGETHER).format(noun, noun.replace("0", "1")) if rng.random() < 0.2 else noun
    if rng.random() < 0.4 * NAME_SCENE:
        text = f"{text} {on_scene(rng.randrange(len(SCENES)))}"
    if rng.random() < 0.4:
        style = rng.choice(styles())
        wordings = IN_ART if style in ART_STYLES else (*STYLES[style].phrases, "{} in the style of " + style)
        text = rng.choice(wordings).format(text, style)
        if rng.random() < 0.3 and not text.startswith(("a ", "an ", "the ")):
            text = rng.choice(WORDINGS).format(text)
    else:
        text = rng.choice(WORDINGS).format(text)
    return text


def filled(sentence: str, first: str, second: str) -> tuple[str, list[tuple[int, int]]]:
    """The sentence about two subjects (or one), and the characters [start, stop) where each stands."""
    spans, text = [], sentence
    for slot, word in (("{0}", first), ("{1}", second)):
        if (at := text.find(slot)) >= 0:
            if word.split()[0] in ("a", "an", "the") and text[:at].endswith(("a ", "the ")):
                cut = at - len(text[:at].split(" ")[-2]) - 1
                text, at = text[:cut] + text[at:], cut
            elif word[0] in "aeiou" and (text[:at].endswith(" a ") or text[:at] == "a "):
                text, at = f"{text[: at - 1]}n {text[at:]}", at + 1
            text = text[:at] + word + text[at + 3 :]
            spans.append((at, at + len(word)))
    return text, spans


@dataclass
class Tokens:
    """Activations of the grown tower at n tokens, and what it has to say there when the fit is done."""

    inner: Tensor  # (n, d) what the new layer's neurons read
    past: Tensor  # (n, layers x hidden) what the trained layers' neurons say
    stream: Tensor  # (n, d) what the final layer norm reads, centred
    target: Tensor  # (n, d) the first half
    first: Tensor  # (n,) code of the subject that was named
    second: Tensor  # (n,) of a second one


class Listener:
    """The grown tower, which says what the narrow one did, with the activations that the fit needs."""

    def __init__(self, grown_clip: CLIPModel, tokenizer: CLIPTokenizer, d: int):
        self.tower, self.tokenizer, self.d, self.heard = grown_clip.text_model, tokenizer, d, {}
        *trained, new = self.tower.encoder.layers
        new.layer_norm2.register_forward_hook(lambda _module, args, out: self.heard.update(stream=args[0], inner=out))
        for i, layer in enumerate(trained):
            layer.mlp.fc2.register_forward_pre_hook(lambda _module, args, i=i: self.heard.update({i: args[0]}))
        self.layers = range(len(trained))

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`Tokens.inner`, `past` and `stream` of token ids (n, 77), and the last hidden state: (n, 77, ...) each."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            last = self.tower(input_ids=ids, attention_mask=None).last_hidden_state
        inner, stream, last = (x[..., : self.d].half() for x in (self.heard["inner"], self.heard["stream"], last))
        return inner, torch.cat([self.heard[i].half() for i in self.layers], -1), stream, last


def collect(listen: Listener, sentences: int, seed: int) -> Tokens:
    """Tokens of many sentences, each about many subjects, and of captions as they are, without a subject."""
    rng, words = random.Random(seed), subjects()
    none, parts = max(i for _, i in words) + 1, []
    for _ in range(sentences):
        text = sentence(rng)
        pairs = [(rng.choice(words), rng.choice(words)) for _ in range(SUBJECTS)]
        parts.append(_about(listen, text, pairs, none, rng))
    plain = [c for c in ("", *ART, *(f"art in {s} style" for s in styles()), *(f"artwork by {s}" for s in styles()))]
    parts += [_plain(listen, plain, none)] * (1 + sentences // 100)
    return Tokens(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _plain(listen: Listener, texts: list[str], none: int) -> tuple[Tensor, ...]:
    heard = [x.flatten(0, 1)[::7] for x in listen(ids_of(listen.tokenizer, texts))]
    nothing = torch.full((len(heard[0]),), none)
    return *heard, nothing, nothing


def _about(listen: Listener, text: str, pairs: list, none: int, rng: random.Random) -> tuple[Tensor, ...]:
    """One sentence about many subjects: each token's activations, target and codes."""
    made = [filled(text, first[0], second[0]) for first, second in pairs]
    rows = listen.tokenizer([t for t, _ in made], padding="max_length", max_length=77, return_offsets_mapping=True)
    ids = torch.tensor(rows["input_ids"])
    ends = (ids == listen.tokenizer.eos_token_id).int().argmax(1)  # (n,)
    heard = listen(ids)
    picked, codes_of = [], []
    shifts = [0, *(rng.randrange(1, 77 - int(ends.max())) for _ in range(OFFSETS))]
    facts = zip(made, rows["offset_mapping"], ends.tolist(), pairs, strict=True)
    for (_, spans), offsets, end, (first, second) in facts:
        inside = [k for k in range(1, end)]
        said = [(first[1] if offsets[k][1] > spans[0][0] else none) for k in inside]
        also = [(second[1] if len(spans) > 1 and offsets[k][1] > spans[1][0] else none) for k in inside]
        own = [k for k in inside if any(a < offsets[k][1] and offsets[k][0] < b for a, b in spans)]
        chosen = [rng.choice(own), own[-1], rng.choice(inside), rng.randrange(0, end)]
        both = first[1], second[1] if len(spans) > 1 else none
        picked.append(chosen + [end + s for s in shifts])
        codes_of.append([(said[k - 1], also[k - 1]) if k else (none, none) for k in chosen] + [both] * len(shifts))
    at = torch.tensor(picked)  # (n, tokens)
    *activations, target = (x.gather(1, at[..., None].expand(-1, -1, x.shape[-1])) for x in heard)
    target, tail = target.float(), slice(len(chosen), None)
    mean = target[:, tail].mean(0, keepdim=True)  # over the subjects, token by token
    target[:, tail] = mean + TAIL_SHARE * (target[:, tail] - mean)
    first, second = torch.tensor(codes_of).unbind(-1)
    return *(x.flatten(0, 1) for x in (*activations, target.half())), first.flatten(), second.flatten()


class Neurons(nn.Module):
    """What the fit adds to a grown tower.

    `read` (hidden, d) and `write` (width, hidden): the new layer's neurons, which read the old channels and write to
    all. `past` (width - d - 2, layers x hidden): what the trained layers' neurons write to the new channels.
    """

    def __init__(self, d: int, width: int, hidden: int, layers: int):
        super().__init__()
        self.read, self.write = nn.Linear(d, hidden), nn.Linear(hidden, width)
        self.past = nn.Linear(layers * hidden, width - d - 2, bias=False)
        with torch.no_grad():
            self.read.weight.normal_(0, d**-0.5)
            self.write.weight[:d].zero_()
            self.write.weight[d:].normal_(0, hidden**-0.5)
            self.write.bias.zero_()
            self.past.weight.zero_()
        self.d = d

    @classmethod
    def of(cls, narrow: CLIPModel) -> Neurons:
        """Fresh ones for `grown(narrow)`."""
        text = narrow.config.text_config
        return cls(text.hidden_size, WIDTH, text.intermediate_size, text.num_hidden_layers)

    def written(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight (width, hidden) and bias (width,) of the new layer, and `past`, as the tower has them.

        Centred, and quiet in the new channels but for the last two.
        """
        parts = []
        for values in (self.write.weight, self.write.bias):
            old, new, loud = values.split((self.d, len(values) - self.d - 2, 2))
            loud = torch.stack([loud[0], -loud[0]])
            parts.append(torch.cat([old - old.mean(0), QUIET * (new - new.mean(0)), loud]))
        return *parts, QUIET * (self.past.weight - self.past.weight.mean(0))

    def forward(self, inner: Tensor, past: Tensor, stream: Tensor, norm: nn.LayerNorm) -> Tensor:
        """(n, width) what the wide tower says at n tokens, from `Tokens`."""
        weight, bias, before = self.written()
        out = F.linear(F.gelu(self.read(inner)), weight, bias).float()
        early = F.pad(F.linear(past, before).float(), (self.d, 2))
        return norm(F.pad(stream, (0, len(weight) - self.d)) + early + out)

    @torch.no_grad()
    def put_into(self, wide: CLIPModel) -> None:
        """Write them into the grown tower."""
        *trained, new = (layer.mlp for layer in wide.text_model.encoder.layers)
        weight, bias, before = self.written()
        new.fc1.weight[:, : self.d] = self.read.weight
        new.fc1.bias.copy_(self.read.bias)
        new.fc2.weight.copy_(weight)
        new.fc2.bias.copy_(bias)
        for mlp, part in zip(trained, before.chunk(len(trained), dim=1), strict=True):
            mlp.fc2.weight[self.d : -2] = part


def train_widen(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    *,
    steps: int = 4000,
    batch: int = 4096,
    lr: float = 3e-3,
    seed: int = 0,
    minutes: float | None = None,
    sentences: int = 500,
) -> Iterator[Record]:
    """Fit the new layer of `grown(clip)`, clip being the narrow model; the averaged neurons are in the checkpoint."""
    torch.manual_seed(seed)
    d, wide, generator = clip.config.text_config.hidden_size, grown(clip), torch.Generator().manual_seed(seed)
    norm = wide.text_model.final_layer_norm.requires_grad_(False)
    neurons, code = Neurons.of(clip), codes(WIDTH - d - 2)
    tokens = collect(Listener(wide, tokenizer, d), sentences, seed)
    groups = [{"params": [*neurons.read.parameters(), *neurons.write.parameters()]}]
    groups.append({"params": [neurons.past.weight], "scale": 0.3})
    optimizer = torch.optim.AdamW(groups, lr, (0.9, 0.99), weight_decay=0.0)
    average = Average(neurons, 0.995)

    def step(_: int) -> float:
        rows = torch.randint(len(tokens.first), (batch,), generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = neurons(*(x[rows].float() for x in (tokens.inner, tokens.past, tokens.stream)), norm)
        said = code[tokens.first[rows]] + code[tokens.second[rows]]
        loss = OLD * F.mse_loss(out[:, :d], tokens.target[rows].float()) + F.mse_loss(out[:, d:-2], said)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(neurons)
        return loss.item()

    parts = {"neurons": neurons, "optimizer": optimizer, "average": average, "generator": generator}
    yield from run_steps("widen", steps, lr, batch, optimizer, step, parts, minutes=minutes, warmup=100, decay=0.9)


def widened(clip: CLIPModel, tokenizer: CLIPTokenizer, neurons: dict[str, Tensor]) -> CLIPModel:
    """The wide model: `grown(clip)` with the fitted neurons, and a projection that finds the narrow one's vectors."""
    wide, layer = grown(clip), Neurons.of(clip)
    layer.load_state_dict(neurons)
    layer.put_into(wide)
    wide.text_projection.weight.data = fitted_projection(clip, wide, tokenizer)
    return wide


def fitted_projection(clip: CLIPModel, wide: CLIPModel, tokenizer: CLIPTokenizer, steps: int = 400) -> Tensor:
    """(projection, width) by which the wide tower's [EOS] gives what the narrow one's gave, and names their pictures.

    By least squares over captions and names, then by telling pictures' names apart while captions stay where they are.
    """
    generator = torch.Generator().manual_seed(0)
    captions = world_captions(6000)[0]
    texts = captions + [wording.format(word) for word, _ in subjects() for wording in WORDINGS[::4]]
    new, old = (_pooled(model, tokenizer, texts) for model in (wide, clip))
    old, G = old @ clip.text_projection.weight.detach().T, new.T @ new
    ridge = 1e-5 * G.trace() / len(G) * torch.eye(len(G))
    weight = nn.Parameter(torch.linalg.solve(G + ridge, new.T @ old).T.contiguous())
    names = _pooled(wide, tokenizer, [f"a photo of the {entry.name}" for entry in catalogue()])
    vectors, concept = _pictures(clip, generator)
    new, old, scale = new[: len(captions)], F.normalize(old[: len(captions)], dim=1), clip.logit_scale.exp().detach()
    optimizer = torch.optim.AdamW([weight], weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        rows, others = (torch.randint(len(x), (1024,), generator=generator) for x in (vectors, new))
        logits = scale.clamp(max=100) * vectors[rows] @ F.normalize(names @ weight.T, dim=1).T
        moved = 1 - (F.normalize(new[others] @ weight.T, dim=1) * old[others]).sum(1)
        optimizer.zero_grad()
        (F.cross_entropy(logits, concept[rows]) + STAY * moved.mean()).backward()
        optimizer.step()
    return weight.detach()


@torch.no_grad()
def _pooled(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(n, d) what the text tower says at [EOS]."""
    rows = [tokenizer(texts[i : i + 256], padding="longest", return_tensors="pt") for i in range(0, len(texts), 256)]
    return torch.cat([model.text_model(input_ids=r.input_ids, attention_mask=None).pooler_output for r in rows])


@torch.no_grad()
def _pictures(clip: CLIPModel, generator: torch.Generator, batches: int = 16) -> tuple[Tensor, Tensor]:
    """Unit vectors (n, projection) of pictures of one subject, and the concept of each (n,)."""
    vectors, concepts = [], []
    for _ in range(batches):
        batch = sample(384, generator)
        alone = batch.second < 0
        vectors.append(seen(clip, batch.images[alone]))
        concepts.append(batch.concept[alone])
    return torch.cat(vectors), torch.cat(concepts)


def widened_unet(state: dict[str, Tensor], width: int = WIDTH) -> dict[str, Tensor]:
    """A UNet's weights whose keys and values of the text read `width` channels, the new ones with zeros."""
    read = ("attn2.to_k.weight", "attn2.to_v.weight")
    return {k: F.pad(v, (0, width - v.shape[1])) if k.endswith(read) else v for k, v in state.items()}
