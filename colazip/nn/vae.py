"""The Text VAE: encoder, latent context models, decoder with its gist reading, and the exact coder.

Shapes: B segments, P patches, K tokens a patch, C latent channels, V = classes * slots tokens. A latent
channel takes nine levels -4..4 = 3 * coarse + fine with coarse, fine in {-1, 0, 1}: the coarse plane alone is
a coarser code of the same latent.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from colazip.config import ModelConfig, StackConfig
from colazip.memory import KINDS
from colazip.nn.exact import ExactEmbedding, ExactLinear, ExactReadout
from colazip.nn.grid import LEVEL, PLANE, ngram_rows
from colazip.nn.layers import ExactStack, StepCache, straight_through


def _stack(config: StackConfig, *, causal: bool) -> ExactStack:
    return ExactStack(config.width, config.layers, config.heads, causal=causal)


def _cells(config: ModelConfig) -> int:
    """Symbols of one token in one plane: its channels are coded together."""
    return int(PLANE**config.channels)


class Encoder(nn.Module):
    """Token embeddings of patches -> continuous latents in -4.5..4.5.

    Latents stand by token: each token has a place of its own in the latent grid, and what stands around it
    moves it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.encoder.width
        self.patch = ExactLinear(config.patch * config.embedding, width)
        self.stack = _stack(config.encoder, causal=False)
        self.places = ExactEmbedding(config.vocabulary, config.channels)
        self.shift = ExactLinear(width, config.patch * config.channels, norm=True, zero=True)

    def set_places(self, levels: Tensor) -> None:
        """levels float32 [V, C] in -4..4, where each token stands before anything is learnt."""
        with torch.no_grad():
            self.places.trainable.copy_(levels / (LEVEL + 0.5 - levels.abs()))

    def forward(
        self, patches: Tensor, places: Tensor, valid: Tensor, *, fast: bool = False
    ) -> tuple[Tensor, Tensor]:
        """patches [B, P, K * E], places of their tokens [B, P, K * C] -> (latents before rounding
        [B, P, K * C], hidden states [B, P, W])."""
        hidden = self.stack(self.patch(patches), valid, fast=fast)
        y = self.shift(hidden) + places
        return y / (1.0 + y.abs()) * (LEVEL + 0.5), hidden


def round_latents(u: Tensor) -> Tensor:
    """Continuous latents -> levels, with the gradient passed straight through."""
    return straight_through(u, torch.round(u).clamp(-LEVEL, LEVEL))


def coarse_plane(levels: Tensor) -> Tensor:
    """Levels -4..4 -> coarse plane -1..1, the nearest third."""
    return torch.round(levels / 3.0)


def cell_index(plane: Tensor, channels: int) -> Tensor:
    """Plane values -1..1 [..., G * C] -> symbol of each token int64 [..., G], the first channel first."""
    digits = (plane + 1).long().unflatten(-1, (-1, channels))
    index = digits[..., 0]
    for c in range(1, channels):
        index = index * PLANE + digits[..., c]
    return index


def _ternary(plane: Tensor) -> Tensor:
    """Plane values -1..1 [..., C] -> [..., 2 C + 1]: with a constant, any function of each value is linear in
    them; the constant also keeps an all-zero latent apart from the start of the text."""
    return torch.cat([plane, plane.abs(), torch.ones_like(plane[..., :1])], -1)


class LatentContext(nn.Module):
    """p(coarse plane): causal over patches, then over the tokens of a patch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.context.width
        self.patch, self.channels = config.patch, config.channels
        self.enter = ExactLinear(2 * config.patch * config.channels + 1, width)
        self.stack = _stack(config.context, causal=True)
        self.mix = nn.ModuleList(
            ExactLinear(2 * g * config.channels + 1, width) if g else nn.Identity()
            for g in range(config.patch)
        )
        self.heads = nn.ModuleList(
            nn.ModuleList(
                (
                    ExactLinear(width, 2 * width, norm=True),
                    ExactLinear(2 * width, width, zero=True),
                    ExactLinear(width, _cells(config), norm=True),
                )
            )
            for _ in range(config.patch)
        )

    def _head(self, token: int, context: Tensor, known: Tensor) -> Tensor:
        """Logits of one token's cell [..., 3 ** C], log2 units; known: the plane of the tokens before it."""
        up, down, last = cast("tuple[ExactLinear, ...]", tuple(cast(nn.ModuleList, self.heads[token])))
        x = context + self.mix[token](_ternary(known)) if token else context
        x = x + down(torch.relu(up(x)).square())
        y = last(x)
        return y

    def forward(self, coarse: Tensor, valid: Tensor, *, fast: bool = False) -> Tensor:
        """coarse [B, P, K * C] in -1..1 -> logits [B, P, K, 3 ** C]."""
        shifted = nn.functional.pad(_ternary(coarse), (0, 0, 1, 0))[:, :-1]
        context = self.stack(self.enter(shifted), valid, fast=fast)
        each = self.channels
        return torch.stack([self._head(g, context, coarse[..., : g * each]) for g in range(self.patch)], -2)

    def step(self, previous: Tensor | None, lanes: int, position: int, caches: list[StepCache]) -> Tensor:
        """Context of one position from the coarse plane of the position before [n, K * C] (None at the
        start)."""
        if previous is None:
            device = caches[0].key.device
            x = torch.zeros(lanes, 2 * self.patch * self.channels + 1, device=device)
        else:
            x = _ternary(previous)
        return self.stack.step(self.enter(x), position, caches)

    def step_logits(self, token: int, context: Tensor, known: Tensor) -> Tensor:
        return self._head(token, context, known)


class Refiner(nn.Module):
    """p(fine plane | coarse plane): one pass, every position sees the whole coarse plane."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.refiner.width
        self.patch, self.channels, self.cells = config.patch, config.channels, _cells(config)
        self.enter = ExactLinear(2 * config.patch * config.channels + 1, width)
        self.stack = _stack(config.refiner, causal=False)
        self.leave = ExactLinear(width, config.patch * self.cells * self.cells, norm=True)

    def forward(self, coarse: Tensor, valid: Tensor, *, fast: bool = False) -> Tensor:
        """coarse [B, P, K * C] -> logits [B, P, K, coarse 3 ** C, fine 3 ** C], log2 units."""
        x = self.stack(self.enter(_ternary(coarse)), valid, fast=fast)
        return self.leave(x).unflatten(-1, (self.patch, self.cells, self.cells))

    def fine(self, coarse: Tensor, valid: Tensor) -> Tensor:
        """Logits of the fine plane under the coarse one that is there: [B, P, K * C] -> [B, P, K, 3 ** C]."""
        table = self(coarse, valid)
        index = cell_index(coarse, self.channels)[..., None, None].expand(*table.shape[:3], 1, self.cells)
        return table.gather(3, index)[:, :, :, 0]


class Decoder(nn.Module):
    """Latents -> features; features -> states of the K tokens of a patch at once (the gist reading)."""

    thresholds: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.patch, self.local = config.patch, config.local_width
        self.register_buffer("thresholds", torch.arange(-LEVEL, LEVEL).float(), persistent=False)
        self.enter = ExactLinear(2 * LEVEL * config.patch * config.channels + 1, width)
        self.stack = _stack(config.decoder, causal=False)
        self.slots = ExactLinear(width, config.patch * config.local_width, norm=True)
        self.up = ExactLinear(config.local_width, config.local_hidden, norm=True)
        self.down = ExactLinear(config.local_hidden, config.local_width, zero=True)

    def forward(self, levels: Tensor, valid: Tensor, *, fast: bool = False) -> Tensor:
        """levels [B, P, K * C] -> features [B, P, W]."""
        # Hinges at every level: any function of one latent is linear in them.
        hinges = torch.relu(levels[..., None] - self.thresholds).flatten(-2)
        x = torch.cat([hinges, torch.ones_like(levels[..., :1])], -1)
        return self.stack(self.enter(x), valid, fast=fast)

    def read(self, features: Tensor) -> Tensor:
        """features [N, W] -> token states [N, K, L]."""
        h = self.slots(features).unflatten(-1, (self.patch, self.local))
        return h + self.down(torch.relu(self.up(h)).square())


class ExactCoder(nn.Module):
    """States of the next token from the latents' features and all exact tokens before it.

    A causal transformer over patches gives one state a patch; a small network adds the tokens just before,
    those of the patch included, and hashed n-grams of them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, local = config.exact.width, config.local_width
        self.patch, self.local, self.rows = config.patch, local, config.ngram_rows
        self.enter_tokens = ExactLinear(config.patch * config.embedding, width)
        self.enter_features = ExactLinear(config.decoder.width, width, norm=True)
        self.stack = _stack(config.exact, causal=True)
        self.slots = ExactLinear(width, config.patch * local, norm=True)
        self.bigrams = ExactEmbedding(config.ngram_rows, config.ngram_width)
        self.trigrams = ExactEmbedding(config.ngram_rows, config.ngram_width)
        self.kinds = ExactEmbedding(KINDS, config.ngram_width)
        self.recent = ExactLinear(4 * config.embedding + 3 * config.ngram_width, local)
        self.trust = ExactLinear(local, 2, norm=True, zero=True)
        self.ups = nn.ModuleList(ExactLinear(local, config.local_hidden, norm=True) for _ in range(2))
        self.downs = nn.ModuleList(ExactLinear(config.local_hidden, local, zero=True) for _ in range(2))

    def patches(self, features: Tensor, tokens: Tensor, valid: Tensor, *, fast: bool = False) -> Tensor:
        """features [B, P, W], embedded patches [B, P, K * E] -> patch states [B, P, D]."""
        shifted = nn.functional.pad(tokens, (0, 0, 1, 0))[:, :-1]
        x = self.enter_tokens(shifted) + self.enter_features(features)
        return self.stack(x, valid, fast=fast)

    def step(self, features: Tensor, previous: Tensor, position: int, caches: list[StepCache]) -> Tensor:
        """features [n, W], embedded patch before [n, K * E] (zeros at the start) -> patch states [n, D]."""
        return self.stack.step(self.enter_tokens(previous) + self.enter_features(features), position, caches)

    def tokens(
        self, patch_slots: Tensor, history: Tensor, guess: Tensor, kind: Tensor, embed: ExactEmbedding
    ) -> Tensor:
        """patch_slots [N, L], tokens before (latest first) int64 [N, 3], the block memory's guess int64 [N]
        and its kind int64 [N] -> token states [N, L]."""
        bigram, trigram = ngram_rows(history, self.rows)
        guessed = embed(guess) * (kind > 0)[..., None]
        recent = torch.cat(
            [
                embed(history).flatten(-2),
                self.bigrams(bigram),
                self.trigrams(trigram),
                guessed,
                self.kinds(kind),
            ],
            -1,
        )
        h = patch_slots + self.recent(recent)
        for up, down in zip(self.ups, self.downs, strict=True):
            h = h + down(torch.relu(up(h)).square())
        return h

    def weigh(self, states: Tensor, guess: Tensor, kind: Tensor) -> Guess:
        """What the guesses are worth, given the token states [N, L]."""
        return Guess(guess, self.trust(states) * (kind > 0)[:, None])


class Guess(NamedTuple):
    """The block memory's guess at each token and what the exact coder makes of it."""

    token: Tensor  # int64 [N]
    bonus: Tensor  # [N, 2], log2 units: what is added to the logit of its class, and of its slot


class TokenReadout(nn.Module):
    """Token states -> class logits, then slot logits of a class. The vocabulary is factored for speed."""

    class_of: Tensor
    slot_of: Tensor
    token_of: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.classes = ExactLinear(config.local_width, config.classes, norm=True)
        self.slots = ExactReadout(config.classes, config.slots, config.local_width)
        vocabulary = config.vocabulary
        self.register_buffer("class_of", torch.arange(vocabulary) // config.slots)
        self.register_buffer("slot_of", torch.arange(vocabulary) % config.slots)
        self.register_buffer("token_of", torch.arange(vocabulary).view(config.classes, config.slots))

    def set_classes(self, class_of: Tensor) -> None:
        """class_of int64 [V], every class the same size; slots follow token order."""
        order = torch.argsort(class_of, stable=True)
        self.token_of.copy_(order.view_as(self.token_of))
        self.class_of.copy_(class_of)
        self.slot_of[order] = torch.arange(len(order)) % self.token_of.shape[1]

    def class_logits(self, states: Tensor, guess: Guess | None = None) -> Tensor:
        """[N, L] -> [N, classes]."""
        logits = self.classes(states)
        return logits if guess is None else _add_at(logits, self.class_of[guess.token], guess.bonus[:, 0])

    def slot_logits(self, states: Tensor, classes: Tensor, guess: Guess | None = None) -> Tensor:
        """[N, L], class int64 [N] -> [N, slots]."""
        logits = self.slots(states, classes)
        if guess is None:
            return logits
        bonus = guess.bonus[:, 1] * (self.class_of[guess.token] == classes)
        return _add_at(logits, self.slot_of[guess.token], bonus)

    def best(self, states: Tensor, beam: int = 4) -> Tensor:
        """The likeliest token of each state [N, L] -> int64 [N], searched in the `beam` likeliest classes."""
        logits = self.classes(states)
        top, classes = torch.topk(logits, min(beam, logits.shape[-1]), dim=-1)
        score, token = None, None
        for j in range(classes.shape[1]):
            inner = self.slots(states, classes[:, j])
            # log2 p(slot | class) of the best slot
            value, slot = inner.max(-1)
            value = top[:, j] + value - torch.logsumexp(inner * 0.6931472, -1) / 0.6931472
            here = self.token_of[classes[:, j], slot]
            if score is None or token is None:
                score, token = value, here
            else:
                better = value > score
                score, token = torch.where(better, value, score), torch.where(better, here, token)
        assert token is not None
        return token


def _add_at(logits: Tensor, index: Tensor, bonus: Tensor) -> Tensor:
    """One number added to one entry of each row."""
    return logits.scatter_add(1, index[:, None], bonus[:, None])


class Latents(NamedTuple):
    """What the encoder says of a batch of segments."""

    levels: Tensor  # [B, P, C] in -4..4
    hidden: Tensor  # [B, P, W] encoder states, for the search head


class TextVAE(nn.Module):
    """All coding networks of one model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = ExactEmbedding(config.vocabulary, config.embedding)
        self.encoder = Encoder(config)
        self.context = LatentContext(config)
        self.refiner = Refiner(config)
        self.decoder = Decoder(config)
        self.exact = ExactCoder(config)
        self.readout = TokenReadout(config)

    def embed_patches(self, tokens: Tensor) -> Tensor:
        """tokens int64 [..., K] -> [..., K * E]."""
        return self.embed(tokens).flatten(-2)

    def encode(self, tokens: Tensor, real: Tensor) -> Latents:
        """tokens int64 [B, P, K] (padded with 0), real bool [B, P, K] (tokens that are there) -> latents."""
        places = self.encoder.places(tokens).flatten(-2)
        u, hidden = self.encoder(self.embed_patches(tokens), places, real[..., 0])
        levels = torch.round(u).clamp(-LEVEL, LEVEL) * real.repeat_interleave(self.config.channels, -1)
        return Latents(levels, hidden)


def token_history(tokens: Tensor) -> Tensor:
    """tokens int64 [B, T] -> the three tokens before each, latest first [B, T, 3], padded at the start."""
    padded = nn.functional.pad(tokens, (3, 0))
    length = tokens.shape[1]
    return torch.stack([padded[:, 3 - j : 3 - j + length] for j in (1, 2, 3)], -1)


def real_tokens(counts: Tensor, tokens: Tensor) -> Tensor:
    """Which of the tokens [B, P, K] are there and not padding: token counts int64 [B] -> bool [B, P, K]."""
    at = torch.arange(tokens.shape[1] * tokens.shape[2], device=tokens.device)
    return at.view(tokens.shape[1:]) < counts[:, None, None]
