"""An autoregressive language model as a peer: a decoder of text, and a coder of it (LLMZip, ts_zip).

A plain float transformer (RMSNorm, rotary positions, squared ReLU, tied embedding) with a KV cache. As a
coder it says which token comes next, one token a step, and the entropy coder of this package does the rest.
Its float sums depend on machine, batch and threads, so what it codes is only read back by the very same
steps: good enough to be measured, not to store anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from colazip.entropy import StreamDecoder, cost_bits, encode_streams
from colazip.errors import InputError
from colazip.nn.exact import frequencies

START = 0  # stands before the first token; the padding token, which no text holds
HEAD_WIDTH = 64
_TO_LOG2 = 1.0 / math.log(2.0)


@dataclass(frozen=True)
class LanguageModelConfig:
    """vocabulary: tokens. width: a multiple of HEAD_WIDTH. hidden: width of the MLP. context: tokens it sees
    at most; a longer text is cut into pieces that don't see each other."""

    vocabulary: int
    width: int
    layers: int
    hidden: int
    context: int = 1024

    @property
    def parameters(self) -> int:
        """Weights of the model, the tied embedding counted once."""
        block = 4 * self.width**2 + 2 * self.width * self.hidden + 2 * self.width
        return self.vocabulary * self.width + self.layers * block + self.width


def matching(vocabulary: int, parameters: int, context: int = 1024) -> LanguageModelConfig:
    """The shape of about `parameters` weights, as published models of this size are proportioned: width some
    64 times the depth, MLP about 4 times the width (that is what is fitted to the count)."""
    best: tuple[float, LanguageModelConfig] | None = None
    for width in range(HEAD_WIDTH, 16 * HEAD_WIDTH + 1, HEAD_WIDTH):
        room = parameters - (vocabulary + 1) * width
        layers = max(1, round(room / (12 * width**2)))
        hidden = (room // layers - 4 * width**2 - 2 * width) // (2 * width)
        if hidden < width:
            continue
        config = LanguageModelConfig(vocabulary, width, layers, hidden, context)
        distance = abs(math.log(width / layers / 64)) + abs(math.log(hidden / (4 * width)))
        if best is None or distance < best[0]:
            best = distance, config
    if best is None:
        raise InputError(f"no language model over {vocabulary} tokens has {parameters} parameters: too few")
    return best[1]


class Cache:
    """Keys and values of every layer, float32 [layers, batch, heads, context, HEAD_WIDTH], and how many
    positions are filled."""

    def __init__(self, config: LanguageModelConfig, batch: int, device: torch.device) -> None:
        shape = config.layers, batch, config.width // HEAD_WIDTH, config.context, HEAD_WIDTH
        self.key, self.value = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
        self.filled = 0


class Layer(nn.Module):
    """Pre-norm attention and MLP over [B, T, D]."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        width = config.width
        self.before_attention, self.before_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, width, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: Cache | None, index: int) -> Tensor:
        """turn: cosines and sines [T, HEAD_WIDTH / 2] of the positions. With a cache x is one new position,
        or all of the first ones, without one the whole text."""
        q, k, v = (
            part.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
            for part in self.qkv(self.before_attention(x)).chunk(3, -1)
        )
        q, k = _rotate(q, turn), _rotate(k, turn)
        if cache is None:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            end = cache.filled + x.shape[1]
            cache.key[index, :, :, cache.filled : end] = k
            cache.value[index, :, :, cache.filled : end] = v
            keys, values = cache.key[index, :, :, :end], cache.value[index, :, :, :end]
            mixed = functional.scaled_dot_product_attention(q, keys, values, is_causal=x.shape[1] > 1)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(self.before_mlp(x))).square())


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: x [B, H, T, W] turned in the planes (i, i + W / 2)."""
    cosine, sine = turn
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


class LanguageModel(nn.Module):
    """p(next token | tokens before)."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        for layer in self.layers:
            nn.init.zeros_(layer.out.weight)  # type: ignore[arg-type, union-attr]
            nn.init.zeros_(layer.down.weight)  # type: ignore[arg-type, union-attr]
        speed = 10_000.0 ** (-torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
        angle = torch.arange(config.context)[:, None] * speed
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T] -> logits of each from those before it [B, T, V], in nats."""
        before = functional.pad(tokens[:, :-1], (1, 0), value=START)
        turn = self.cosine[: tokens.shape[1]], self.sine[: tokens.shape[1]]
        x = self.embed(before)
        for index, layer in enumerate(self.layers):
            x = layer(x, turn, None, index)
        return self._logits(x)

    def step(self, token: Tensor, cache: Cache) -> Tensor:
        """The latest token int64 [B] (START at first) -> logits of the next one [B, V], in nats."""
        return self._cached(token[:, None], cache)

    def prefill(self, tokens: Tensor, cache: Cache) -> Tensor:
        """A prompt int64 [B, T] in one pass -> logits of the token after it [B, V]. cache: an empty one."""
        return self._cached(functional.pad(tokens, (1, 0), value=START), cache)

    def _cached(self, tokens: Tensor, cache: Cache) -> Tensor:
        at, end = cache.filled, cache.filled + tokens.shape[1]
        turn = self.cosine[at:end], self.sine[at:end]
        x = self.embed(tokens)
        for index, layer in enumerate(self.layers):
            x = layer(x, turn, cache, index)
        cache.filled = end
        return self._logits(x[:, -1])

    def _logits(self, x: Tensor) -> Tensor:
        return functional.linear(self.norm(x), self.embed.weight)

    def cache(self, batch: int = 1) -> Cache:
        return Cache(self.config, batch, self.embed.weight.device)


@torch.inference_mode()
def generate(model: LanguageModel, count: int) -> np.ndarray:
    """The likeliest token, `count` times over from an empty text: int64 [count]."""
    tokens: list[np.ndarray] = []
    for size in _pieces(count, model.config.context):
        cache, token = model.cache(), torch.full((1,), START, device=model.embed.weight.device)
        for _ in range(size):
            token = model.step(token, cache).argmax(-1)
            tokens.append(token.cpu().numpy())
    return np.concatenate(tokens) if tokens else np.zeros(0, np.int64)


@torch.inference_mode()
def encode_tokens(model: LanguageModel, tokens: np.ndarray) -> bytes:
    """Tokens int64 [T] of one text as one stream. One step a token, as `decode_tokens` takes: sums of the
    parallel pass differ in their last bits."""
    starts, sizes = [], []
    at = 0
    for size in _pieces(len(tokens), model.config.context):
        cache, token = model.cache(), torch.full((1,), START, device=model.embed.weight.device)
        for symbol in tokens[at : at + size].tolist():
            freq = frequencies(model.step(token, cache) * _TO_LOG2)[0]
            starts.append(int(freq[:symbol].sum()))
            sizes.append(int(freq[symbol]))
            token = torch.full_like(token, symbol)
        at += size
    return encode_streams([(np.array(starts, np.int64), np.array(sizes, np.int64))])[0]


@torch.inference_mode()
def decode_tokens(model: LanguageModel, data: bytes, count: int) -> np.ndarray:
    """The `count` tokens of a stream of `encode_tokens`, int64 [count]. Raises FormatError on damage."""
    decoder, only = StreamDecoder([data]), np.zeros(1, np.int64)
    device = model.embed.weight.device
    tokens: list[np.ndarray] = []
    cdf = torch.zeros(1, model.config.vocabulary + 1, dtype=torch.int32, device=device)
    for size in _pieces(count, model.config.context):
        cache, token = model.cache(), torch.full((1,), START, device=device)
        for _ in range(size):
            freq = frequencies(model.step(token, cache) * _TO_LOG2)
            torch.cumsum(freq, -1, dtype=torch.int32, out=cdf[:, 1:])
            found = decoder.decode(only, cdf.cpu().numpy())
            tokens.append(found)
            token = torch.from_numpy(found).to(device)
    decoder.finish()
    return np.concatenate(tokens) if tokens else np.zeros(0, np.int64)


@torch.inference_mode()
def text_bits(model: LanguageModel, texts: Sequence[np.ndarray], batch_tokens: int = 4096) -> np.ndarray:
    """Bits of each text (tokens int64 [T]) by itself, under integer frequencies: float64 [N].

    The parallel pass: what a coder of these distributions writes, short of its flushed state.
    """
    context = model.config.context
    pieces = [
        (n, text[at : at + context]) for n, text in enumerate(texts) for at in range(0, len(text), context)
    ]
    pieces.sort(key=lambda piece: len(piece[1]))
    bits, at = np.zeros(len(texts)), 0
    while at < len(pieces):
        end = at + 1
        while end < len(pieces) and (end + 1 - at) * len(pieces[end][1]) <= batch_tokens:
            end += 1
        part = pieces[at:end]
        table = torch.zeros(len(part), len(part[-1][1]), dtype=torch.int64)
        for row, (_, tokens) in enumerate(part):
            table[row, : len(tokens)] = torch.from_numpy(tokens)
        logits = model(table.to(model.embed.weight.device))
        for row, (n, tokens) in enumerate(part):
            freq = frequencies(logits[row, : len(tokens)] * _TO_LOG2)
            mine = freq.gather(1, table[row, : len(tokens), None].to(freq.device))[:, 0]
            bits[n] += cost_bits(mine.cpu().numpy()).sum()
        at = end
    return bits


def _pieces(count: int, context: int) -> list[int]:
    """Lengths of the pieces that a text of `count` tokens is cut into."""
    return [min(context, count - at) for at in range(0, count, context)]


def as_checkpoint(model: LanguageModel) -> dict[str, Any]:
    """What `from_checkpoint` reads, for torch.save."""
    return {"config": asdict(model.config), "model": model.state_dict()}


def from_checkpoint(state: Any) -> LanguageModel:
    """The model of a checkpoint. Raises InputError if it is not one of a language model."""
    try:
        model = LanguageModel(LanguageModelConfig(**state["config"]))
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise InputError(f"not a checkpoint of a language model: {e}") from e
    return model.eval().requires_grad_(False)
