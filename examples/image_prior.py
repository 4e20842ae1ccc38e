"""The diffusion prior on pictures: draws small pictures, learns them by patches in under a minute on a CPU,
and fills in patches that are missing. Nothing in the prior knows of text, or of pictures.

python examples/image_prior.py [--steps N]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from colazip import Prior, Sampling
from colazip.config import StackConfig
from colazip.nn.dit import DiT
from colazip.train.optimize import learning_rate
from colazip.train.prior import PriorSchedule, flow_loss

SIDE, PATCH = 16, 4  # pixels
ACROSS = SIDE // PATCH
SHADES = " .:-=+*#%@"


def draw(count: int, seed: int) -> np.ndarray:
    """Discs and bars over a slope of grey: pictures in -1..1, float32 [count, SIDE, SIDE]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1.0)
    pictures = []
    for _ in range(count):
        angle, level = rng.uniform(0, 2 * np.pi), rng.uniform(-0.6, 0.0)
        picture = level + 0.4 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))
        cx, cy, size = rng.uniform((0.2, 0.2, 0.15), (0.8, 0.8, 0.35))
        inside = (x - cx) ** 2 + (y - cy) ** 2 < size**2
        if rng.random() < 0.5:
            inside = np.abs((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) < size / 3
        pictures.append(np.where(inside, level + 1.0, picture))
    return np.array(pictures, np.float32)


def to_patches(pictures: np.ndarray) -> np.ndarray:
    """[N, SIDE, SIDE] -> [N, patches, pixels of a patch], row by row."""
    cut = pictures.reshape(-1, ACROSS, PATCH, ACROSS, PATCH).swapaxes(2, 3)
    return np.ascontiguousarray(cut.reshape(len(pictures), ACROSS * ACROSS, PATCH * PATCH))


def to_picture(patches: np.ndarray) -> np.ndarray:
    """[patches, pixels of a patch] -> [SIDE, SIDE]."""
    return patches.reshape(ACROSS, ACROSS, PATCH, PATCH).swapaxes(1, 2).reshape(SIDE, SIDE)


def train(steps: int) -> Prior:
    """A prior whose block is a whole picture, so that every patch sees all others."""
    torch.manual_seed(0)
    network = DiT(PATCH * PATCH, StackConfig(width=64, layers=3, heads=4), block=ACROSS * ACROSS)
    data = torch.from_numpy(to_patches(draw(4096, seed=0)))
    network.deviation.fill_(float(data.std()))
    valid = torch.ones(48, data.shape[1], dtype=torch.bool)
    schedule = PriorSchedule(steps, lr=3e-3, informed=0.8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=schedule.lr, betas=(0.9, 0.95))
    started = time.monotonic()
    for step in range(steps):
        factor = learning_rate(step, steps, warmup=min(50, steps), decay_from=schedule.decay_from)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * factor
        loss = flow_loss(network, data[torch.randint(len(data), (48,))], valid, schedule)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            took = time.monotonic() - started
            print(f"step {step + 1}: flow loss {float(loss.detach()):.3f}, {took:.0f} s")
    return Prior(network.requires_grad_(False))


def show(pictures: list[np.ndarray]) -> str:
    """Pictures side by side in characters; nan is a gap."""
    lines = []
    for row in zip(*pictures, strict=True):
        parts = []
        for values in row:
            shade = np.clip((np.nan_to_num(values) + 1) / 2 * (len(SHADES) - 1), 0, len(SHADES) - 1).round()
            parts.append(
                "".join("?" if np.isnan(v) else SHADES[int(s)] for v, s in zip(values, shade, strict=True))
            )
        lines.append("   ".join(parts))
    return "\n".join(lines)


def main(steps: int) -> None:
    prior = train(steps)
    real = list(to_patches(draw(64, seed=1)))
    mean = to_patches(draw(1024, seed=0)).mean(0)
    rng = np.random.default_rng(2)
    print("\nsquared error of missing patches")
    print("missing   best guess   one sample   mean picture   the picture's own mean")
    for share in (0.1, 0.3, 0.5):
        holes = [rng.permutation(len(r)) < round(share * len(r)) for r in real]
        # One step lands on the mean of all that could be there; more steps on one of the things that could.
        filled = prior.infill(real, holes, Sampling(steps=8))
        guesses = (
            prior.infill(real, holes, Sampling(steps=1, solver="euler")),
            filled,
            [mean] * len(real),
            [np.broadcast_to(r[~h].mean(), r.shape) for r, h in zip(real, holes, strict=True)],
        )
        errors = [
            np.mean([np.square(g[h] - r[h]).mean() for g, r, h in zip(some, real, holes, strict=True)])
            for some in guesses
        ]
        print(f"{share:7.0%}{errors[0]:13.4f}{errors[1]:13.4f}{errors[2]:15.4f}{errors[3]:25.4f}")
    gap = np.where(holes[0][:, None], np.nan, real[0])
    print("\na picture, half of its patches missing, and filled in:\n")
    print(show([to_picture(real[0]), to_picture(gap), to_picture(filled[0])]))
    shuffled = [r[rng.permutation(len(r))] for r in real]
    right = (prior.score(real) > prior.score(shuffled)).mean()
    print(f"\nscore: real above the same patches shuffled in {right:.0%} of pictures")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="of training (default 600)")
    main(max(1, parser.parse_args().steps))
