"""What every stage of training shares: learning-rate factor, atomic checkpoints, metrics, the guard on the
loss."""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from colazip.errors import ColazipError, InputError
from colazip.train.data import Batch


def learning_rate(step: int, steps: int, *, warmup: int, decay_from: float) -> float:
    """Factor of the peak rate: linear warm-up, flat, linear to zero from the fraction `decay_from` on."""
    if step < warmup:
        return (step + 1) / warmup
    return min(1.0, max(0.0, (steps - step) / (steps * (1.0 - decay_from))))


def muon(matrices: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Muon for the matrices inside transformers (arXiv 2502.16982), at rates that suit AdamW as well."""
    return torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices inside the transformers, and everything else."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (inner if parameter.ndim == 2 and ".stack." in name else outer).append(parameter)
    return inner, outer


class Descent:
    """Optimizers that step together under one learning-rate factor, with the gradient clipped to norm 1."""

    def __init__(self, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.module, self.optimizers = module, list(optimizers)
        self.peaks = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    def backward(self, loss: torch.Tensor) -> float:
        """Back-propagate and clip; returns the norm that the gradient had."""
        loss.backward()
        return self.clip()

    def clip(self, count: float = 1.0) -> float:
        """Divide the gradient by `count`, then clip it; returns the norm that it had in between."""
        if count not in (0.0, 1.0):
            torch._foreach_div_([p.grad for p in self.module.parameters() if p.grad is not None], count)
        return float(nn.utils.clip_grad_norm_(self.module.parameters(), 1.0))

    def step(self, factor: float) -> None:
        """Take one step at `factor` times the peak rates."""
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[Any]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load(self, state: Sequence[Any]) -> None:
        for optimizer, saved in zip(self.optimizers, state, strict=True):
            optimizer.load_state_dict(saved)


def save_atomic(value: Any, path: Path) -> None:
    """torch.save beside the path, then renamed: a kill leaves the old file."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path, device: torch.device) -> Any:
    """A checkpoint written by `save_atomic`. Raises InputError if there is none or it can't be read."""
    if not path.exists():
        raise InputError(f"{path}: nothing to resume; start without --resume")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError) as e:
        raise InputError(
            f"{path}: not a readable checkpoint ({type(e).__name__}); start without --resume"
        ) from e


@contextmanager
def fitting(checkpoint: Path) -> Iterator[None]:
    """InputError if what is loaded inside from a checkpoint does not fit the run."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{checkpoint}: is of another model or recipe; start without --resume") from e


class Metrics:
    """One JSON line an entry in metrics.jsonl, one readable line on stderr.

    step: where the run goes on. Entries of later steps, which a killed run left, are dropped; at 0, all are.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if step and path.exists() else []
        path.write_text("".join(line for line in lines if _is_entry_until(line, step)))

    def write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as out:
            out.write(json.dumps(entry) + "\n")
        shown = (
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in entry.items()
            if not isinstance(v, dict)
        )
        print("  ".join(shown), file=sys.stderr, flush=True)


def _is_entry_until(line: str, step: int) -> bool:
    try:
        return json.loads(line).get("step", 0) <= step
    except ValueError:  # the kill came while it was written
        return False


def check_finite(
    loss: float, norm: float, step: int, batch: Batch | None, folder: Path, name: str = "bad_batch"
) -> None:
    """ColazipError, with the batch saved if there is one, once a loss or its gradient is not finite.

    name: of the file, where several processes may save one each. Exact layers turn what is not a number into
    integers, so that the loss alone may look sane.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    if batch is None:
        raise ColazipError(f"{folder}: the loss is not finite at step {step}")
    kept = folder / f"{name}.npz"
    np.savez(kept, tokens=batch.tokens, counts=batch.counts)
    raise ColazipError(f"the loss is not finite at step {step}; the batch is in {kept}")


def to_tensors(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens int64 [B, T], counts int64 [B]."""
    return torch.from_numpy(batch.tokens).to(device), torch.from_numpy(batch.counts).to(device)


def guesses(batch: Batch, device: torch.device) -> torch.Tensor:
    """The block memory's guesses and their kinds, int64 [2, B, T]."""
    return torch.from_numpy(batch.guesses).to(device)
