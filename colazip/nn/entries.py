"""A prior over vectors that are made of entries of a codebook, as patches are of places of tokens.

The stack, the blocks and the flow are those of `colazip.nn.dit`; what differs is how values enter and leave.
Of each part of a vector (one entry) a belief is formed over the whole codebook: how common each entry is,
which are possible at all, and how well each explains the noisy values. The features that the belief expects
enter the network; out comes what the other parts say for each entry. Both together are the distribution of
the clean entry, its mean the clean vector that the flow foresees: score interpolation with a cross-entropy
loss, as in "Continuous diffusion for categorical data" (arXiv 2211.15089). At time 0, where the noisy values
say nothing, this is a masked language model over what is known of each part.

Shapes: B sequences, P vectors (N of them in one block) of K parts, V entries of C values, F features, S sets.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from colazip.config import ModelConfig, StackConfig
from colazip.nn.dit import DiTStack, History

_BESIDE = 2  # parts on either side that the readout of a part sees
_HIDDEN = 256  # of the readout
_TIME_WIDTH = 32
_GRAIN = 1e-3  # by which a box may miss what lies in it: its bounds are sums of floats
_OUT = -1e4  # the logit of an entry that is not possible
NOWHERE = -1  # stands for a part that is not there: behind the end of a sequence


class EntryDiT(DiTStack):
    """Distributions of the entries of noisy vectors, given what is known of them and what stands before.

    What is known of a part is a number: below V the entry itself; V + s: it is one of set s; NOWHERE: there
    is no such part. Sets are rows of `members`, bool [S, V].
    """

    codebook: Tensor
    whole = True  # trained on whole sequences too: what is known of later blocks is heard

    def __init__(self, codebook: Tensor, parts: int, stack: StackConfig, block: int, features: int) -> None:
        """codebook: float [V, C]."""
        super().__init__(stack, block, _TIME_WIDTH)
        entries, values = codebook.shape
        self.parts, self.channels = parts, parts * values
        self.table = nn.Parameter(torch.randn(entries, features))
        self.common = nn.Parameter(torch.zeros(entries))  # log of how often an entry comes, up to a constant
        self.enter = nn.Linear(parts * (features + 1), stack.width)
        self.leave = nn.Linear(stack.width, parts * features)
        self.beside = nn.Linear((2 * _BESIDE + 1) * (features + 1) + features, _HIDDEN)
        self.narrow = nn.Linear(_HIDDEN, features)
        for layer in (self.leave, self.narrow):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for inner in self.blocks:
            inner.start_open()  # type: ignore[operator]
        # Not stored with the weights: the codebook is that of the model around.
        self.register_buffer("codebook", codebook.detach().clone(), persistent=False)
        self.register_buffer("deviation", torch.ones(self.channels))

    @classmethod
    def for_text(cls, config: ModelConfig, places: Tensor) -> EntryDiT:
        """The prior over patches of tokens, which are entries of a table of places [V, C]."""
        return cls(places, config.patch, config.prior, config.prior_block, config.prior_features)

    def look_up(self, members: Tensor) -> Tensor:
        """What enters for each thing that can be known, where the noise says nothing: [V + S + 1, F + 1].

        The last row, which NOWHERE finds, is zero. The last feature is how unsure the entry is, 0 to 1.
        """
        expected, unsure = self._expect(torch.where(members, self.common, _OUT))
        sets = torch.cat([expected, unsure[:, None]], 1)
        entries = functional.pad(self.table, (0, 1))
        return torch.cat([entries, sets, sets.new_zeros(1, sets.shape[1])])

    def _expect(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Beliefs [..., V] -> the features that they expect [..., F], and their entropy, 0 to 1 [...]."""
        logs = torch.log_softmax(logits, -1)
        shares = logs.exp()
        unsure = -(shares * logs).sum(-1) / math.log(len(self.table))
        return shares @ self.table, unsure

    def evidence(self, noisy: Tensor, t: Tensor) -> Tensor:
        """What noisy parts [..., C] at times t [...] say for each entry, log [..., V]; zero at time 0.

        Values are in units of the deviation.
        """
        places = self.places()
        sharp = (t / (1.0 - t).clamp_min(0.01).square())[..., None]
        return sharp * (noisy @ places.T - t[..., None] / 2 * places.square().sum(-1))

    def beliefs(self, known: Tensor, members: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Logits of each entry before the others are heard: known int64 [...], noisy [..., C], t [...] ->
        [..., V]."""
        entries = len(self.table)
        possible = members[(known - entries).clamp_min(0)]
        logits = torch.where(possible, self.common + self.evidence(noisy, t), _OUT)
        named = known.clamp(0, entries - 1)[..., None]
        only = torch.full_like(logits, _OUT).scatter(-1, named, 0.0)
        return torch.where((known < entries)[..., None], only, logits)

    def inputs(self, known: Tensor, table: Tensor) -> Tensor:
        """What enters where the noise says nothing: known int64 [...], of `look_up` -> [..., F + 1]."""
        return functional.embedding(known.remainder(len(table)), table)

    def noisy_inputs(self, beliefs: Tensor) -> Tensor:
        """What enters for beliefs [..., V]: [..., F + 1]."""
        expected, unsure = self._expect(beliefs)
        return torch.cat([expected, unsure[..., None]], -1)

    def queries(
        self, inputs: Tensor, t: Tensor, mask: Tensor | None = None, clean: Tensor | None = None
    ) -> Tensor:
        """Whole sequences at once -> what the others say of each part, to be multiplied with `table`.

        inputs [B, P, K, F + 1]; t [B, P]; mask bool, broadcast to [B, heads, P, P]. With the inputs of the
        clean sequence they are blocks, each after the clean blocks before it; the mask is then
        `training_mask`. Returns [B, P, K, F].
        """
        length = inputs.shape[1]
        x = self.enter(inputs.flatten(-2))
        rotation = self.rotation(0, length, x.device)
        if clean is not None:
            x = torch.cat([self.enter(clean.flatten(-2)), x], 1)
            t = torch.cat([torch.ones_like(t), t], 1)
            rotation = rotation.repeat(2, 1, 1)
        modulation = self.modulation(t)
        for i, layer in enumerate(self.blocks):
            x = layer(x, modulation, rotation, mask, None, i, False)
        return self._read(x[:, -length:], inputs, None if clean is None else self.block)

    def _read(self, x: Tensor, inputs: Tensor, block: int | None) -> Tensor:
        """States [B, N, D] and what entered [B, N, K, F + 1] -> [B, N, K, F]. block: vectors that see each
        other, None for all."""
        own = self.leave(functional.layer_norm(x, x.shape[-1:])).unflatten(-1, (self.parts, -1)).flatten(1, 2)
        flat = inputs.flatten(1, 2)
        length = flat.shape[1]
        at = torch.arange(length, device=flat.device)
        around = []
        for shift in range(-_BESIDE, _BESIDE + 1):
            near = functional.pad(flat, (0, 0, _BESIDE, _BESIDE))[:, _BESIDE + shift :][:, :length]
            if block is not None:
                span = block * self.parts
                near = near * (at // span == (at + shift).div(span, rounding_mode="floor"))[:, None]
            around.append(near)
        hidden = torch.relu(self.beside(torch.cat([*around, own], -1))).square()
        return (own + self.narrow(hidden)).unflatten(1, (-1, self.parts))

    # -- as `colazip.nn.dit.DiT`

    def forward(
        self,
        noisy: Tensor,
        t: Tensor,
        clean: Tensor,
        valid: Tensor,
        history: Tensor,
        known: Tensor | None = None,
    ) -> Tensor:
        """Velocities [B, P, K * C] of whole sequences at once, as of `DiT.forward`."""
        taken = self._take_in(noisy, t, known, valid)
        before = self._clean_inputs(clean, valid)
        mask = self.training_mask(valid, history)[:, None]
        clean_now = self._foresee(taken, self.queries(taken.inputs, t, mask, before))
        return (clean_now - noisy) / (1.0 - t)[..., None]

    def velocity(
        self, x: Tensor, t: float, past: History, known: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Velocity of one noisy block [B, n, K * C] at time t, as of `DiT.velocity`."""
        times = x.new_full(x.shape[:2], t)
        taken = self._take_in(x, times, known, valid)
        hidden = self.run(self.enter(taken.inputs.flatten(-2)), t, past, valid, keep=False)
        return (self._foresee(taken, self._read(hidden, taken.inputs, None)) - x) / (1.0 - t)

    def finish(self, x: Tensor, past: History, valid: Tensor | None = None) -> None:
        """Append a finished block [B, n, K * C], of which each part counts as the nearest entry."""
        self._append(self._clean_inputs(x, valid), past, valid)

    def finish_entries(self, known: Tensor, past: History) -> None:
        """Append a finished block of entries, int64 [B, n, K]."""
        self._append(self.inputs(known, functional.pad(self.table, (0, 1, 0, 1))), past, None)

    def _append(self, inputs: Tensor, past: History, valid: Tensor | None) -> None:
        self.run(self.enter(inputs.flatten(-2)), 1.0, past, valid, keep=True)
        past.length += inputs.shape[1]

    def _clean_inputs(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """What enters for finished vectors [B, N, K * C], of which each part counts as the nearest entry."""
        inputs = functional.embedding(self.nearest(x), functional.pad(self.table, (0, 1)))
        return inputs if valid is None else inputs * valid[..., None, None]

    def nearest(self, x: Tensor) -> Tensor:
        """Vectors [..., K * C] in units of the deviation -> the entry nearest to each part [..., K]."""
        places = self.places()
        parts = x.unflatten(-1, (self.parts, -1))
        return (parts @ places.T - places.square().sum(-1) / 2).argmax(-1)

    def places(self) -> Tensor:
        """The codebook in units of the deviation, which is the same for all parts."""
        return self.codebook / self.deviation[: self.codebook.shape[1]]

    def _take_in(self, x: Tensor, t: Tensor, known: Tensor | None, valid: Tensor | None) -> _Taken:
        """Noisy vectors [B, N, K * C] at times t [B, N], and the boxes of `knowledge` [B, N, 2 K * C] that
        their values lie in."""
        noisy = x.unflatten(-1, (self.parts, -1))
        there = torch.ones(noisy.shape[:3], dtype=torch.bool, device=x.device)
        if valid is not None:
            there = there & valid[..., None]
        inputs = noisy.new_zeros(*noisy.shape[:3], self.table.shape[1] + 1)
        named, places, box = torch.zeros_like(there), self.places(), None
        if known is not None:
            sure, centre = (k.unflatten(-1, (self.parts, -1)) for k in known.chunk(2, -1))
            named = (sure == 1).all(-1)
            entry = self.nearest(centre.flatten(-2))
            inputs[named] = functional.pad(self.table[entry[named]], (0, 1))
            box = centre / sure, 1.0 / sure - 1.0
        where = there & ~named
        logits = self.common + self.evidence(noisy[where], t[..., None].expand_as(where)[where])
        if box is not None and (sure[where] > 0).any():
            middle, reach = (b[where] for b in box)
            for i in range(places.shape[1]):  # one value at a time: all of them at once take the memory
                out = (places[:, i] - middle[:, i : i + 1]).abs() > reach[:, i : i + 1] + _GRAIN
                logits = logits.masked_fill(out, _OUT)
        inputs[where] = self.noisy_inputs(logits)
        return _Taken(inputs * there[..., None], where, logits, x)

    def _foresee(self, taken: _Taken, queries: Tensor) -> Tensor:
        """Clean vectors [B, N, K * C], the mean of what is possible; what is not open stays as it was."""
        logits = taken.logits + queries[taken.where] @ self.table.T
        clean = taken.x.unflatten(-1, (self.parts, -1)).clone()
        clean[taken.where] = (logits.softmax(-1) @ self.places()).to(clean.dtype)
        return clean.flatten(-2)

    # -- what is likely

    def chances(self, known: Tensor, members: Tensor) -> Tensor:
        """Log probabilities of the entries of all parts of whole sequences that are not named: known int64
        [B, P, K], whose sequences are of one length but for NOWHERE at the end -> [n, V], in order."""
        inputs = self.inputs(known, self.look_up(members))
        mask = (known[..., 0] != NOWHERE)[:, None, None]
        queries = self.queries(inputs, inputs.new_zeros(known.shape[:2]), mask)
        return self._shares(known, members, queries)

    def block_chances(self, known: Tensor, members: Tensor, past: History) -> Tensor:
        """The same of one block [B, n, K] after the finished ones."""
        inputs = self.inputs(known, self.look_up(members))
        hidden = self.run(self.enter(inputs.flatten(-2)), 0.0, past, known[..., 0] != NOWHERE, keep=False)
        return self._shares(known, members, self._read(hidden, inputs, None))

    def _shares(self, known: Tensor, members: Tensor, queries: Tensor) -> Tensor:
        where = known >= len(self.table)
        possible = members[known[where] - len(self.table)]
        logits = torch.where(possible, self.common + queries[where] @ self.table.T, _OUT)
        return torch.log_softmax(logits, -1)


class _Taken(NamedTuple):
    """What entered. inputs [B, N, K, F + 1]; where bool [B, N, K]: the parts that are open; logits [n, V]:
    the beliefs about those; x: the noisy vectors."""

    inputs: Tensor
    where: Tensor
    logits: Tensor
    x: Tensor
