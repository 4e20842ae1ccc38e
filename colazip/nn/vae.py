"""The networks that code text: the gist by an autoregressive coder, the exact text by one pass over the gist.

Shapes: B segments, P patches, K tokens a patch, V = classes * slots tokens, N tokens picked out of a batch. A
token is its class and its slot within the class, the slots of a class sorted from common to rare. A gist of
some detail names the first `limit` slots of a class; a rarer token stands in it as the first slot that is not
named, so that its class is known and the rest is left to the exact layer.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from colazip.config import ModelConfig, StackConfig
from colazip.memory import KINDS
from colazip.nn.exact import ExactEmbedding, ExactLinear, ExactReadout, exact_mlp
from colazip.nn.grid import CLOSED, ngram_rows
from colazip.nn.layers import ExactStack, StepCache
from colazip.nn.likeness import Alike, Likeness
from colazip.nn.pointer import Pointer


def _stack(config: StackConfig, *, causal: bool) -> ExactStack:
    return ExactStack(config.width, config.layers, config.heads, causal=causal)


class Decoder(nn.Module):
    """Tokens of a gist -> what stands behind each of them, seen from both sides in one pass."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.patch, self.local = config.patch, config.local_width
        self.details = ExactEmbedding(config.details, width)
        self.enter = ExactLinear(config.patch * config.embedding, width)
        self.stack = _stack(config.decoder, causal=False)
        self.about = ExactLinear(config.vector, width, norm=True, zero=True) if config.conditional else None
        self.slots = ExactLinear(width, config.patch * config.local_width, norm=True)
        self.near = ExactLinear(3 * config.embedding, config.local_width)
        self.up = ExactLinear(config.local_width, config.local_hidden, norm=True)
        self.down = ExactLinear(config.local_hidden, config.local_width, zero=True)
        self.heed = ExactLinear(self.local, 1, norm=True, zero=True) if config.conditional else None

    def forward(
        self,
        embedded: Tensor,
        valid: Tensor,
        detail: int,
        about: Tensor | None = None,
        *,
        fast: bool = False,
    ) -> Tensor:
        """Embedded gist [B, P, K, E], zeros where there is no token; valid bool [B, P] -> features
        [B, P, W]. about: what a search code says of each patch, [B, P, W]."""
        # Filled on the device: a number copied there can't be part of a captured graph.
        level = self.details(torch.full((), detail, dtype=torch.long, device=embedded.device))
        x = self.enter(embedded.flatten(-2)) + level
        return self.stack(x if about is None else x + about, valid, fast=fast)

    def read(self, features: Tensor, embedded: Tensor, at: Tensor) -> Tensor:
        """Token states [N, L] at tokens int64 [N] of the B * P * K, from what `forward` took and gave."""
        slots = self.slots(features).unflatten(-1, (self.patch, self.local)).flatten(0, 2)
        flat = nn.functional.pad(embedded.flatten(1, 2), (0, 0, 1, 1))
        around = torch.cat([flat[:, :-2], flat[:, 1:-1], flat[:, 2:]], -1).flatten(0, 1)
        h = slots.index_select(0, at) + self.near(around.index_select(0, at))
        return h + exact_mlp(h, self.up, self.down)


class Coder(nn.Module):
    """States of the next token of a gist from all of its tokens before.

    A causal transformer over patches gives one state a patch; a small network adds the tokens just before,
    those of the patch included, hashed n-grams of them, and what the block's memory guesses.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, local = config.coder.width, config.local_width
        self.patch, self.local, self.rows = config.patch, local, config.ngram_rows
        self.details = ExactEmbedding(config.details, width)
        self.enter = ExactLinear(config.patch * config.embedding, width)
        self.stack = _stack(config.coder, causal=True)
        self.about = ExactLinear(config.vector, width, norm=True, zero=True) if config.conditional else None
        self.slots = ExactLinear(width, config.patch * local, norm=True)
        self.bigrams = ExactEmbedding(config.ngram_rows, config.ngram_width)
        self.trigrams = ExactEmbedding(config.ngram_rows, config.ngram_width)
        self.kinds = ExactEmbedding(KINDS, config.ngram_width)
        self.recent = ExactLinear(4 * config.embedding + 3 * config.ngram_width, local)
        self.trust = ExactLinear(local, 2, norm=True, zero=True)
        self.ups = nn.ModuleList(ExactLinear(local, config.local_hidden, norm=True) for _ in range(2))
        self.downs = nn.ModuleList(ExactLinear(config.local_hidden, local, zero=True) for _ in range(2))
        self.heed = ExactLinear(local, 2, norm=True, zero=True) if config.conditional else None
        self.pointer = None if config.pointer is None else Pointer(local, config.pointer)

    def _detail(self, detail: int, device: torch.device) -> Tensor:
        level: Tensor = self.details(torch.full((), detail, dtype=torch.long, device=device))
        return level

    def patches(
        self, tokens: Tensor, valid: Tensor, detail: int, about: Tensor | None = None, *, fast: bool = False
    ) -> Tensor:
        """Embedded patches [B, P, K * E] -> states of the tokens [B, P, K, L], before those of a patch.
        about: what a search code says of each patch, [B, P, W]."""
        shifted = nn.functional.pad(tokens, (0, 0, 1, 0))[:, :-1]
        x = self.enter(shifted) + self._detail(detail, tokens.device)
        x = x if about is None else x + about
        return self.slots(self.stack(x, valid, fast=fast)).unflatten(-1, (self.patch, self.local))

    def step(
        self,
        previous: Tensor,
        position: int,
        detail: int,
        caches: list[StepCache],
        about: Tensor | None = None,
    ) -> Tensor:
        """Embedded patch before [n, K * E] (zeros at the start) -> states [n, K, L]. about: [n, W]."""
        x = self.enter(previous) + self._detail(detail, previous.device)
        x = x if about is None else x + about
        return self.slots(self.stack.step(x, position, caches)).unflatten(-1, (self.patch, self.local))

    def tokens(
        self,
        patch_slots: Tensor,
        history: Tensor,
        guess: Tensor,
        kind: Tensor,
        embed: ExactEmbedding,
        before: Tensor | None = None,
    ) -> Tensor:
        """patch_slots [N, L], tokens before (latest first) int64 [N, 3], the block memory's guess int64 [N]
        and its kind int64 [N] -> token states [N, L]. before: the embedded history [N, 3 * E], where it is
        known already."""
        bigram, trigram = ngram_rows(history, self.rows)
        guessed = embed(guess) * (kind > 0)[..., None]
        recent = torch.cat(
            [
                embed(history).flatten(-2) if before is None else before,
                self.bigrams(bigram),
                self.trigrams(trigram),
                guessed,
                self.kinds(kind),
            ],
            -1,
        )
        h = patch_slots + self.recent(recent)
        for up, down in zip(self.ups, self.downs, strict=True):
            h = h + exact_mlp(h, cast("ExactLinear", up), cast("ExactLinear", down))
        return h

    def weigh(self, states: Tensor, guess: Tensor, kind: Tensor) -> Guess:
        """What the guesses are worth, given the token states [N, L]."""
        return Guess(guess, self.trust(states) * (kind > 0)[:, None])


class Guess(NamedTuple):
    """The block memory's guess at each token and what the coder makes of it."""

    token: Tensor  # int64 [N]
    bonus: Tensor  # [N, 2], log2 units: what is added to the logit of its class, and of its slot


class Told(NamedTuple):
    """What C search vectors say, and of: int64 [B, P], which of them each patch has. alike: of tokens; coder,
    decoder: float32 [C, W], to their transformers."""

    alike: Alike
    coder: Tensor
    decoder: Tensor
    of: Tensor

    def to_coder(self) -> Tensor:
        """For each patch, [B, P, W]."""
        return nn.functional.embedding(self.of, self.coder)

    def to_decoder(self) -> Tensor:
        """For each patch, [B, P, W]."""
        return nn.functional.embedding(self.of, self.decoder)

    def of_tokens(self, tokens: Tensor) -> Tensor:
        """Which vector each of the tokens [B, P, K] has: int64 [B, P, K]."""
        return self.of[..., None].expand_as(tokens)


class TokenReadout(nn.Module):
    """Token states -> class logits, then slot logits of a class. The vocabulary is factored for speed."""

    class_of: Tensor
    slot_of: Tensor
    token_of: Tensor
    limits: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.classes = ExactLinear(config.local_width, config.classes, norm=True)
        self.slots = ExactReadout(config.classes, config.slots, config.local_width)
        vocabulary = config.vocabulary
        self.register_buffer("class_of", torch.arange(vocabulary) // config.slots)
        self.register_buffer("slot_of", torch.arange(vocabulary) % config.slots)
        self.register_buffer("token_of", torch.arange(vocabulary).view(config.classes, config.slots))
        # Slots of each class that a gist of each detail names.
        self.register_buffer("limits", torch.zeros(config.details, config.classes, dtype=torch.long))

    def set_classes(self, token_of: Tensor, limits: Tensor) -> None:
        """token_of int64 [classes, slots], common ones first; limits int64 [details, classes]."""
        self.token_of.copy_(token_of)
        order = token_of.flatten()
        self.class_of[order] = torch.arange(len(order)) // token_of.shape[1]
        self.slot_of[order] = torch.arange(len(order)) % token_of.shape[1]
        self.limits.copy_(limits)

    def named(self, tokens: Tensor, detail: int) -> Tensor:
        """What stands for tokens [...] in a gist."""
        classes = self.class_of[tokens]
        return self.token_of[classes, torch.minimum(self.slot_of[tokens], self._last(detail)[classes])]

    def is_open(self, tokens: Tensor, detail: int) -> Tensor:
        """Whether tokens of a gist [...] stand for more than one: bool [...]."""
        last = self.token_of.shape[1] - 1
        limits = self.limits[detail][self.class_of[tokens]]
        return (self.slot_of[tokens] == limits) & (limits < last)

    def has_slots(self, classes: Tensor, detail: int) -> Tensor:
        """Whether a gist says anything beyond these classes [...]: bool [...]."""
        return self.limits[detail][classes] > 0

    def _last(self, detail: int) -> Tensor:
        """The last slot of each class that a gist can say."""
        return self.limits[detail].clamp_max(self.token_of.shape[1] - 1)

    def class_logits(self, states: Tensor, guess: Guess | None = None, lift: Tensor | None = None) -> Tensor:
        """[N, L] -> [N, classes]. lift: [N, classes], what a search code adds."""
        logits = self.classes(states)
        if guess is not None:
            logits = _add_at(logits, self.class_of[guess.token], guess.bonus[:, 0])
        return logits if lift is None else logits + lift

    def gist_logits(
        self,
        states: Tensor,
        classes: Tensor,
        detail: int,
        guess: Guess | None = None,
        lift: Tensor | None = None,
    ) -> Tensor:
        """Slots that a gist can say, [N, L], class int64 [N] -> [N, slots]. lift: [N, slots]."""
        logits = self.slots(states, classes)
        if guess is not None:
            bonus = guess.bonus[:, 1] * (self.class_of[guess.token] == classes)
            logits = _add_at(logits, self.slot_of[guess.token], bonus)
        if lift is not None:
            logits = logits + lift
        slot = torch.arange(logits.shape[-1], device=logits.device)
        return logits.masked_fill(slot > self._last(detail)[classes][:, None], CLOSED)

    def rare_logits(self, states: Tensor, classes: Tensor, detail: int, lift: Tensor | None = None) -> Tensor:
        """Slots that a gist can't say, [N, L], class int64 [N] -> [N, slots]. lift: [N, slots]."""
        logits = self.slots(states, classes)
        if lift is not None:
            logits = logits + lift
        slot = torch.arange(logits.shape[-1], device=logits.device)
        return logits.masked_fill(slot < self.limits[detail][classes][:, None], CLOSED)


def _add_at(logits: Tensor, index: Tensor, bonus: Tensor) -> Tensor:
    """One number added to one entry of each row."""
    return logits.scatter_add(1, index[:, None], bonus[:, None])


class TextVAE(nn.Module):
    """All coding networks of one model.

    A Text VAE of a discrete kind, as VQ-VAE (arXiv 1711.00937) is one: the latent of a token is its entry in
    a table of vectors (`places`), which a gist of less detail knows by a coarser cell.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = ExactEmbedding(config.vocabulary, config.embedding)
        self.coder = Coder(config)
        self.decoder = Decoder(config)
        self.readout = TokenReadout(config)
        # What search codes say of tokens.
        self.likeness = Likeness(config) if config.conditional else None
        # The latent of each token: what the prior works on.
        self.places = ExactEmbedding(config.vocabulary, config.channels)

    def embed_patches(self, tokens: Tensor) -> Tensor:
        """tokens int64 [..., K] -> [..., K * E]."""
        return self.embed(tokens).flatten(-2)

    def embed_gist(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Gist tokens int64 [B, P, K], real bool [B, P, K] -> [B, P, K, E], zeros where there is none."""
        return self.embed(tokens) * real[..., None]

    def rare_logits(
        self,
        tokens: Tensor,
        real: Tensor,
        where: Tensor,
        detail: int,
        told: Told | None = None,
    ) -> Tensor:
        """Slots of the open tokens of a gist: int64 [B, P, K], where bool [B, P, K] -> [N, slots].

        told: what search codes say, if the gist was coded given them.
        """
        embedded = self.embed_gist(tokens, real)
        about = None if told is None else told.to_decoder()
        features = self.decoder(embedded, real[..., 0], detail, about)
        states = self.decoder.read(features, embedded, where.flatten().nonzero()[:, 0])
        classes = self.readout.class_of[tokens[where]]
        lift = None
        if told is not None:
            lift = self.lift_rare(states, told, told.of_tokens(where)[where], classes)
        return self.readout.rare_logits(states, classes, detail, lift)

    def tell(self, vectors: Tensor, of: Tensor) -> Told:
        """What search vectors float32 [C, D] say to the networks. of: int64 [B, P], which each patch has."""
        assert self.likeness is not None and self.coder.about is not None and self.decoder.about is not None
        return Told(self.likeness(vectors), self.coder.about(vectors), self.decoder.about(vectors), of)

    def gates(self, states: Tensor) -> Tensor:
        """How much of what a search code says of classes and slots counts: the coder's states [N, L] -> [N,
        2]."""
        assert self.coder.heed is not None
        gates: Tensor = self.coder.heed(states)
        return gates

    def lift_classes(self, gates: Tensor, told: Told, which: Tensor) -> Tensor:
        """What vectors int64 [N] add to the logits of classes, given the coder's gates [N, 2]: [N,
        classes]."""
        return gates[:, :1] * told.alike.classes[which]

    def lift_slots(self, gates: Tensor, told: Told, which: Tensor, classes: Tensor) -> Tensor:
        """The same for the slots of classes int64 [N]: [N, slots]."""
        assert self.likeness is not None
        return gates[:, 1:] * self.likeness.slots(told.alike, which, classes)

    def lifts(self, states: Tensor, told: Told, which: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Both, where the classes int64 [N] are known: [N, classes] and [N, slots]."""
        gates = self.gates(states)
        return self.lift_classes(gates, told, which), self.lift_slots(gates, told, which, classes)

    def lift_rare(self, states: Tensor, told: Told, which: Tensor, classes: Tensor) -> Tensor:
        """The same for what a gist can't say, given the decoder's states [N, L]: [N, slots]."""
        assert self.likeness is not None and self.decoder.heed is not None
        return self.decoder.heed(states) * self.likeness.slots(told.alike, which, classes)


def token_history(tokens: Tensor) -> Tensor:
    """tokens int64 [B, T] -> the three tokens before each, latest first [B, T, 3], padded at the start."""
    padded = nn.functional.pad(tokens, (3, 0))
    length = tokens.shape[1]
    return torch.stack([padded[:, 3 - j : 3 - j + length] for j in (1, 2, 3)], -1)


def embedded_history(embedded: Tensor, start: Tensor) -> Tensor:
    """What `token_history` gives, embedded, of tokens that are: [B, T, E] -> [B, T, 3 * E]. start: [E], the
    token that stands before a text."""
    length = embedded.shape[1]
    padded = torch.cat([start.expand(len(embedded), 3, -1), embedded], 1)
    return torch.cat([padded[:, 3 - j : 3 - j + length] for j in (1, 2, 3)], -1)


def real_tokens(counts: Tensor, tokens: Tensor) -> Tensor:
    """Which of the tokens [B, P, K] are there and not padding: token counts int64 [B] -> bool [B, P, K]."""
    at = torch.arange(tokens.shape[1] * tokens.shape[2], device=tokens.device)
    return at.view(tokens.shape[1:]) < counts[:, None, None]
