"""Training steps that a GPU replays: forward, backward and the optimizers of one step in one graph a shape.

The networks consist of many small operations, and starting them one by one takes several times as long as
the card takes to run them (docs/experiments.md, 33 and 42). On a CPU the same step runs operation by
operation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from colazip.nn.vae import TextVAE
from colazip.train.data import Batch
from colazip.train.optimize import check_finite, split_parameters
from colazip.train.padded import padded_sums
from colazip.train.resident import Inputs, Resident, Shape, shapes

if TYPE_CHECKING:
    from colazip.train.vae import VAESchedule

_ROOM = 1.6, 0.02  # of open tokens in a batch: so many times their share of the text, and a little more
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class BatchedMuon:
    """torch.optim.Muon with adjust_lr_fn="match_rms_adamw", matrices of one shape in one product, and the
    rate a tensor, so that a captured step reads it anew.

    Source: Keller Jordan's Muon; rates after arXiv 2502.16982.
    """

    def __init__(self, matrices: Sequence[nn.Parameter], weight_decay: float, momentum: float = 0.95) -> None:
        self._groups: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            self._groups.setdefault(matrix.shape, []).append(matrix)
        self._momenta = {
            shape: torch.zeros(len(own), *shape, device=own[0].device) for shape, own in self._groups.items()
        }
        self._weight_decay, self._momentum = weight_decay, momentum

    def state(self) -> list[Tensor]:
        return list(self._momenta.values())

    def load(self, state: Sequence[Tensor]) -> None:
        """ValueError or RuntimeError where it is another model's."""
        for own, saved in zip(self._momenta.values(), state, strict=True):
            own.copy_(saved)

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        """rate: float32 scalar."""
        for shape, own in self._groups.items():
            gradient = torch.stack([p.grad for p in own if p.grad is not None])
            momentum = self._momenta[shape]
            momentum.lerp_(gradient, 1 - self._momentum)
            update = _orthogonal(gradient.lerp(momentum, self._momentum))
            update = update * (rate * (0.2 * max(shape) ** 0.5))
            keep = 1 - rate * self._weight_decay
            for parameter, change in zip(own, update.unbind(), strict=True):
                parameter.mul_(keep).sub_(change)


def _orthogonal(matrices: Tensor) -> Tensor:
    """Nearest orthogonal matrices, about, by Newton-Schulz iterations in bfloat16: [n, a, b] -> [n, a, b]."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).float()


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """float32 products through TF32: integers of the grid stay exact, which have less digits; what gradients
    lose is below what bfloat16 loses elsewhere."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class _Kind(NamedTuple):
    """What decides the operations of a step."""

    shape: Shape
    detail: int
    told: bool
    fast: bool


class CapturedSteps:
    """Steps over the batches of a text that is on the device: a `loop.Steps`.

    A step's micro-batches are one batch here. `bad_batch.npz` in `folder` is one whose loss was not finite.
    """

    def __init__(
        self,
        model: TextVAE,
        schedule: VAESchedule,
        data: Resident,
        sizes: tuple[int, ...],
        folder: Path,
    ) -> None:
        """sizes: bytes of the codes that batches are told, none if they are told nothing."""
        self._model, self._schedule, self._data, self._sizes = model, schedule, data, sizes
        self._folder = folder
        matrices, others = split_parameters(model)
        others = [parameter for parameter in others if parameter.requires_grad]
        self._parameters = [*matrices, *others]
        self._grads = [torch.zeros_like(parameter) for parameter in self._parameters]
        for parameter, gradient in zip(self._parameters, self._grads, strict=True):
            parameter.grad = gradient  # for good: a graph adds to what was there when it was captured
        cuda = data.device.type == "cuda"
        self._muon_rate, self._adamw_rate = torch.zeros(2, device=data.device).unbind()
        self._muon = BatchedMuon(matrices, schedule.weight_decay)
        self._adamw = torch.optim.AdamW(
            others, lr=self._adamw_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=cuda, capturable=cuda
        )
        self._open = [self._open_share(detail) for detail in range(model.config.details)]
        self._found = torch.zeros(6, device=data.device)  # what `padded_sums` gives, the gradient's norm
        self._shapes = shapes(model.config.segment, schedule.patches * schedule.micro_batches)
        self._stream: Iterator[tuple[Shape, np.ndarray]] | None = None
        self._inputs: dict[Shape, Inputs] = {}
        self._graphs: dict[_Kind, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if cuda else None

    def state(self) -> list[Any]:
        """Of the optimizers."""
        return [self._muon.state(), self._adamw.state_dict()]

    def load(self, state: Sequence[Any]) -> None:
        """Before the first step."""
        muon, adamw = state
        self._muon.load(muon)
        self._adamw.load_state_dict(adamw)
        for group in self._adamw.param_groups:
            group["lr"] = self._adamw_rate

    def take(self, step: int, factor: float) -> dict[str, float]:
        """Step number `step`, at `factor` times the peak rates: sums in bits over its `count` tokens. Raises
        ColazipError when they are not finite."""
        schedule = self._schedule
        if self._stream is None:
            self._stream = self._data.batches(self._shapes, seed=schedule.seed, skip=step)
        shape, rows = next(self._stream)
        size = schedule.code_bytes(step, self._sizes) if self._sizes else None
        fast = step / schedule.steps < schedule.exact_from
        kind = _Kind(shape, schedule.detail(step), size is not None, fast)
        if shape not in self._inputs:
            self._inputs[shape] = self._data.blank(shape)
        self._data.fill(self._inputs[shape], rows, size)
        self._muon_rate.fill_(schedule.muon_lr * factor)
        self._adamw_rate.fill_(schedule.lr * factor)
        with _tensor_cores():
            self._run(kind)
        count, classes, slots, exact, _, norm = self._found.tolist()
        loss = classes + slots + exact
        if not np.isfinite(loss + norm):
            tokens, guesses = self._data.batch(self._inputs[shape], shape.patches)
            batch = Batch(tokens.cpu().numpy(), rows[:, 1], guesses.cpu().numpy())
            check_finite(loss, norm, step, batch, self._folder)
        return {"loss": loss, "count": count, "gist": classes + slots, "exact": exact}

    def _open_share(self, detail: int) -> float:
        """Of the text's tokens, which a gist leaves open."""
        readout = self._model.readout
        parts = self._data.tokens.split(1 << 20)
        count = sum(int(readout.is_open(readout.named(part.long(), detail), detail).sum()) for part in parts)
        return count / len(self._data.tokens)

    def _run(self, kind: _Kind) -> None:
        if self._pool is None:
            self._whole(kind)
            return
        if kind not in self._graphs:
            self._graphs[kind] = self._captured(kind)
        self._graphs[kind].replay()

    def _gradients(self, kind: _Kind) -> Tensor:
        torch._foreach_zero_(self._grads)
        inputs, patches = self._inputs[kind.shape], kind.shape.patches
        tokens, guesses = self._data.batch(inputs, patches)
        about = self._data.about(inputs, patches) if kind.told else None
        room = max(1, int(tokens.numel() * min(1.0, _ROOM[0] * self._open[kind.detail] + _ROOM[1])))
        sums = padded_sums(
            self._model, tokens, inputs.counts, guesses, kind.detail, room=room, fast=kind.fast, about=about
        )
        (sums[1:4].sum() / sums[0]).backward()
        return sums.detach()

    def _whole(self, kind: _Kind) -> None:
        sums = self._gradients(kind)
        norm = nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._muon.step(self._muon_rate)
        self._adamw.step()
        self._found.copy_(torch.cat([sums, norm[None]]))

    def _captured(self, kind: _Kind) -> torch.cuda.CUDAGraph:
        """The graph of a kind of step, not yet run."""
        first = not self._graphs
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what libraries and caches set up once must not be in the graph
            if first:
                self._whole(kind)  # a step more, in which the optimizers make what they keep
            else:
                self._gradients(kind)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._whole(kind)
        return graph
