"""One to many processes: who is who, sharding, checkpoints that any number of processes reads, averages.

Started by `torchrun` there is a process a device; started alone there is one, and no process group. DDP keeps
all weights on every device; FSDP2 (`fully_shard`) gives each a part of every weight, gradient and optimizer
state. Checkpoints are written by torch.distributed.checkpoint: every process writes its part, and a run that
goes on with more or fewer processes, or with the other kind of sharding, reads what it needs.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from colazip.errors import InputError, UsageError

_PATIENCE = timedelta(hours=6)  # the others wait while one process tokenizes the text
_PREFIX = "step-"


@dataclass(frozen=True)
class Place:
    """This process among all: its number, how many there are, and its device."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def alone(cls, device: str = "cpu") -> Place:
        """A process without others."""
        return cls(0, 1, torch.device(device))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0


def chosen_device(name: str) -> str:
    """What `auto` means here, or the name itself. Raises UsageError for another than cpu or cuda, and for a
    GPU where there is none."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not re.fullmatch(r"cuda(:\d{1,3})?", name):
        raise UsageError(f"device {name!r}: must be auto, cpu or cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("no CUDA device here; use --device cpu")
    return name


@contextmanager
def joined(device: str) -> Iterator[Place]:
    """The place of this process, its group set up if torchrun started it, and taken down afterwards. A group
    that the caller has set up is used as it is.

    device: `cpu` or `cuda`; with several processes each gets a GPU of its own. Raises UsageError if there
    are fewer GPUs than processes on this machine.
    """
    where = torch.device(device)
    if "RANK" not in os.environ:
        yield Place.alone(device)
        return
    if where.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"{torch.cuda.device_count()} GPUs here, but process {local} needs one of its own;"
                " lower --nproc-per-node"
            )
        where = torch.device("cuda", local)
        torch.cuda.set_device(where)
    if dist.is_initialized():
        yield Place(dist.get_rank(), dist.get_world_size(), where)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Place(dist.get_rank(), dist.get_world_size(), where)
    finally:
        dist.destroy_process_group()


def set_up(place: Place) -> None:
    """What torch has to be told before the compression recipes train on a GPU."""
    if place.device.type != "cuda":
        return
    # Integers of the grid pass through TF32 whole, floats between exact layers would lose digits.
    torch.backends.cuda.matmul.allow_tf32 = False
    # cuDNN plans its attention anew for every shape, and batches come in hundreds of shapes: 15 ms of CPU
    # time for an attention that takes 0.1 ms.
    torch.backends.cuda.enable_cudnn_sdp(False)


def wait(place: Place | None = None) -> None:
    """Return once every process has come here; at once for a place that stands alone."""
    if place is not None and place.world == 1:
        return
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def one_after_another(place: Place) -> Iterator[None]:
    """The body runs in the first process, then in all others: what the first has made is there for them."""
    if not place.first:
        wait()
    yield
    if place.first:
        wait()


def share_of(micro_batches: int, place: Place) -> int:
    """How many of a step's micro-batches each process takes. Raises UsageError if they can't be shared."""
    if micro_batches % place.world:
        raise UsageError(
            f"{place.world} processes can't share {micro_batches} micro-batches a step;"
            " start a number that divides them"
        )
    return micro_batches // place.world


def add_gradients(module: nn.Module, place: Place) -> None:
    """Put the sum over all processes in the place of each gradient; every process holds the whole module."""
    if place.world == 1:
        return
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:  # this process's part of the batch had no use for it
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in trained if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def total(values: dict[str, float], place: Place) -> dict[str, float]:
    """Sums over all processes."""
    if place.world == 1:
        return dict(values)
    packed = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(packed)
    return dict(zip(values, packed.tolist(), strict=True))


@dataclass(frozen=True)
class Parallel:
    """How a run uses its devices. Weights, gradients and optimizer state are float32 in any case.

    sharding: `ddp` or `fsdp`. precision: of the matrix products, `float32` or `bfloat16`. recompute: keep the
    inputs of layers only (activation checkpointing).
    """

    sharding: str = "ddp"
    precision: str = "bfloat16"
    recompute: bool = False


class Spread:
    """A module over all processes, to be called as the module itself; `accumulating` delays the exchange of
    gradients to the last part of a batch."""

    def __init__(
        self, module: nn.Module, layers: Sequence[nn.Module], parallel: Parallel, place: Place
    ) -> None:
        """layers: inner modules that are sharded one by one, so that only one is whole at a time."""
        self.module, self.place, self.parallel = module, place, parallel
        self._outer: nn.Module = module
        if place.world == 1:
            return
        if parallel.sharding == "fsdp":
            mesh = init_device_mesh(place.device.type, (place.world,))
            policy = MixedPrecisionPolicy()
            if parallel.precision == "bfloat16":
                policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            for part in (*layers, module):
                fully_shard(part, mesh=mesh, mp_policy=policy)
        else:
            ids = [place.device.index] if place.device.type == "cuda" else None
            self._outer = DistributedDataParallel(
                module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def __call__(self, *arguments: Any) -> Any:
        # FSDP casts by its own policy; where weights stay float32, autocast does.
        cast = self.parallel.precision == "bfloat16" and not isinstance(self.module, FSDPModule)
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=cast):
            return self._outer(*arguments)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around forward and backward of one part of a batch."""
        if isinstance(self._outer, DistributedDataParallel) and not last:
            with self._outer.no_sync():
                yield
            return
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
        yield


def clip(module: nn.Module, limit: float) -> float:
    """Scale all gradients so that their common norm is at most `limit`; returns what it was."""
    norm = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], limit)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


class Average:
    """The exponential moving average of all trained weights, each process its part."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """step: steps taken so far. Early steps count more, or the start would never be forgotten."""
        share = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))
        trained = {n: own(p) for n, p in module.named_parameters() if n in self.weights}
        torch._foreach_lerp_([own(self.weights[n]) for n in trained], list(trained.values()), share)

    @contextmanager
    def swapped_in(self, module: nn.Module) -> Iterator[None]:
        """Within, the module computes with the averages."""
        self._swap(module)
        try:
            yield
        finally:
            if isinstance(module, FSDPModule):
                module.reshard()  # after a forward pass without a backward one it is still whole
            self._swap(module)

    @torch.no_grad()
    def _swap(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if name in self.weights:
                a, b = own(self.weights[name]), own(parameter)
                kept = a.clone()
                a.copy_(b)
                b.copy_(kept)


def own(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Full tensors on the CPU, from parts of all processes; each has to call it."""
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().cpu() for name, t in tensors.items()
    }


def save(
    folder: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average,
    place: Place,
) -> None:
    """Write `folder/step-N`, which appears when it is whole, then remove what it replaces."""
    partial = folder / f".{_PREFIX}{step}.partial"
    if place.first:
        shutil.rmtree(partial, ignore_errors=True)
    wait()
    with _quiet():
        dcp.save(_state(module, optimizer, average), checkpoint_id=partial)
    wait()
    if place.first:
        target = folder / f"{_PREFIX}{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        for old in _checkpoints(folder)[:-1]:
            shutil.rmtree(old, ignore_errors=True)
    wait()


def restore(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> int:
    """Load the newest checkpoint of `folder`, written by any number of processes; returns its step.

    Raises InputError if there is none, or if it is of another model.
    """
    found = _checkpoints(folder)
    if not found:
        raise InputError(f"{folder}: nothing to resume; start without --resume")
    state = _state(module, optimizer, average)
    try:
        with _quiet():
            dcp.load(state, checkpoint_id=found[-1])
            set_state_dict(
                module,
                optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
                options=StateDictOptions(strict=True),
            )
    except (dcp.CheckpointException, RuntimeError, ValueError, KeyError, OSError) as e:
        raise InputError(
            f"{found[-1]}: damaged, or of another model or recipe; start without --resume"
        ) from e
    return int(found[-1].name.removeprefix(_PREFIX))


def has_checkpoint(folder: Path) -> bool:
    return bool(_checkpoints(folder))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{_PREFIX}*") if p.name.removeprefix(_PREFIX).isdigit())


def _state(module: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> dict[str, Any]:
    weights, moments = get_state_dict(module, optimizer)
    return {"model": weights, "optimizer": moments, "average": average.weights}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without its warning that a process alone is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        yield
