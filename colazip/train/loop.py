"""How coder, prior and search rows train: steps, checkpoints, metrics, on one to many processes.

A step's batch consists of a fixed number of micro-batches in a fixed order; N processes take every N-th. So
the losses do not depend on how many processes there are, nor on where a run was interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from colazip.train.data import Batch, TokenStore, batches
from colazip.train.distributed import Place, add_gradients, share_of, total, wait
from colazip.train.optimize import (
    Descent,
    Metrics,
    check_finite,
    fitting,
    learning_rate,
    load_checkpoint,
    save_atomic,
)

# Sums over a micro-batch, and the batch, which is kept if they are nonsense. `loss` is what is minimised,
# added up over what `count` counts.
Part = tuple[Mapping[str, Tensor | float], Batch | None]


@dataclass(frozen=True)
class Schedule:
    """What every run has. Fractions are of `steps`; micro_batches: of a step, over all processes."""

    steps: int
    micro_batches: int = 1
    warmup: int = 100
    decay_from: float = 0.5
    log_every: int = 50
    evaluate_every: int = 500
    save_every: int = 250
    seed: int = 0

    def part_seed(self, index: int) -> int:
        """Seed of what the micro-batch of that number draws, whatever came before it."""
        return (self.seed << 40) + index


class Steps(Protocol):
    """How steps are taken, where not from micro-batches one after the other."""

    def take(self, step: int, factor: float) -> dict[str, float]:
        """Step number `step` at `factor` times the peak rates; returns sums as a Part has them."""
        ...

    def state(self) -> list[Any]:
        """What a resumed run needs beside the module."""
        ...

    def load(self, state: Sequence[Any]) -> None:
        """Go on from what `state` gave; before the first step."""
        ...


class Loop:
    """One run under way: `folder/checkpoint.pt` and `folder/metrics.jsonl`, which the first process writes.

    step: how many are done. Raises InputError, with `resume`, if the checkpoint is none of this run;
    UsageError when the processes can't share a step's micro-batches.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer] | Steps,
        schedule: Schedule,
        *,
        folder: Path,
        place: Place,
        resume: bool,
        about: Mapping[str, Any],
    ) -> None:
        """optimizers: of the steps that `run` takes, or what takes them. about: what the first line of the
        metrics says beside the schedule."""
        self.module, self.schedule, self.folder, self.place = module, schedule, folder, place
        self.step = 0
        self._steps = Descent(module, optimizers) if isinstance(optimizers, Sequence) else optimizers
        self._own = share_of(schedule.micro_batches, place)
        self._checkpoint = folder / "checkpoint.pt"
        if resume:
            state = load_checkpoint(self._checkpoint, place.device)
            with fitting(self._checkpoint):
                module.load_state_dict(state["model"])
                self._steps.load(state["optimizers"])
                self.step = state["step"]
        self._metrics = Metrics(folder / "metrics.jsonl", step=self.step) if place.first else None
        if not resume:
            self._write({**about, "schedule": asdict(schedule), "processes": place.world})

    def stream(self, store: TokenStore, segments: np.ndarray, *, patch: int, patches: int) -> Iterator[Batch]:
        """This process's micro-batches of about `patches` patches each, from where the run stands."""
        place, schedule = self.place, self.schedule
        return batches(
            store,
            segments,
            patch=patch,
            patches=patches,
            seed=schedule.seed,
            skip=self.step * schedule.micro_batches,
            rank=place.rank,
            world=place.world,
        )

    def run(
        self,
        part: Callable[[int], Part] | None,
        figures: Callable[[dict[str, float], float], dict[str, float]],
        evaluate: Callable[[], dict[str, float]],
    ) -> dict[str, float]:
        """Take the steps that are left; returns the validation figures at the end: none in a run that
        was finished already, nor in other processes than the first.

        part: computes the micro-batch of that number; None where `Steps` take them. figures: of the sums over
        a window of steps and the seconds it took, what is logged. evaluate: validation figures; the first
        process calls it. Raises ColazipError, with the batch saved, when the loss stops being finite.
        """
        schedule = self.schedule
        window: dict[str, float] = {}
        seconds = 0.0
        found: dict[str, float] = {}
        while self.step < schedule.steps:
            started = time.monotonic()
            factor = learning_rate(
                self.step, schedule.steps, warmup=schedule.warmup, decay_from=schedule.decay_from
            )
            sums = self._take(part, factor)
            seconds += time.monotonic() - started
            self.step += 1
            window = {name: window.get(name, 0.0) + value for name, value in sums.items()}
            last = self.step == schedule.steps
            if self.step % schedule.log_every == 0 or last:
                self._write({"step": self.step, **figures(window, seconds), "lr": factor})
                window, seconds = {}, 0.0
            if self.step % schedule.evaluate_every == 0 or last:
                found = self._validate(evaluate)
            if self.step % schedule.save_every == 0 or last:
                self._save()
        return found

    def _take(self, part: Callable[[int], Part] | None, factor: float) -> dict[str, float]:
        """One step at `factor` times the peak rates; returns the sums over all processes."""
        if not isinstance(self._steps, Descent):
            return self._steps.take(self.step, factor)
        assert part is not None
        place, found = self.place, []
        for i in range(self._own):
            sums, batch = part(self.step * self.schedule.micro_batches + i * place.world + place.rank)
            loss = sums["loss"]
            assert isinstance(loss, Tensor)
            loss.backward()
            found.append(({name: _number(value) for name, value in sums.items()}, batch))
        add_gradients(self.module, place)
        summed = total({name: sum(sums[name] for sums, _ in found) for name in found[0][0]}, place)
        norm = self._steps.clip(summed["count"])
        # The norm is common to all processes, so all of them stop; the batch that is to blame is kept.
        name = "bad_batch" if place.world == 1 else f"bad_batch-{place.rank}"
        for sums, batch in found:
            if not math.isfinite(sums["loss"]) or batch is found[-1][1]:
                check_finite(sums["loss"], norm, self.step, batch, self.folder, name)
        self._steps.step(factor)
        return summed

    def _validate(self, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
        found = evaluate() if self.place.first else {}
        self._write({"step": self.step, "validation": "figures", **found})
        wait(self.place)
        return found

    def _save(self) -> None:
        if self.place.first:
            state = {"model": self.module.state_dict(), "optimizers": self._steps.state()}
            save_atomic({**state, "step": self.step}, self._checkpoint)
        wait(self.place)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(entry)


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else value
