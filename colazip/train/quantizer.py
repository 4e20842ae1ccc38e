"""The product quantizer of search codes and the axes of shorter vectors, fitted to vectors of passages."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from colazip.vectors import read_codes


def balanced_rotation(sample: Tensor, slices: int) -> Tensor:
    """Rotation [D, D] after which every slice carries a like share of the variance of unit vectors [N, D].

    That of parametric optimized product quantization (Ge et al. 2013); rows are the new axes.
    """
    sample = sample.double()
    values, vectors = torch.linalg.eigh(sample.t() @ sample / len(sample))
    order = _balance(values.clamp_min(1e-9), slices, sample.shape[1] // slices)
    return vectors[:, order].t().float()


def principal_axes(sample: Tensor) -> np.ndarray:
    """Directions that unit vectors [N, D] lie along, most first: float16 [D, D], one a row.

    The first few coordinates along them stand in for a vector as a Matryoshka prefix does (arXiv 2205.13147);
    rotations trained for that found no more (docs/experiments.md, 37).
    """
    sample = sample.double()
    _, vectors = torch.linalg.eigh(sample.t() @ sample / len(sample))
    return vectors.flip(1).t().cpu().numpy().astype(np.float16)


def fit_codebook(vectors: Tensor, slices: int, seed: int) -> Tensor:
    """Centroids [M, 256, D / M] of the M slices of unit vectors [N, D]."""
    generator = torch.Generator().manual_seed(seed)
    parts = vectors.view(len(vectors), slices, -1)
    return torch.stack([_k_means(parts[:, m], 256, generator) for m in range(slices)])


def decode(codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Codes uint8 [N, M] -> the unit vectors they stand for, float32 [N, D]."""
    read = read_codes(codes, codebook)
    return read / np.maximum(np.linalg.norm(read, axis=1, keepdims=True), 1e-9)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Vectors [B, D] as their codes read, [B, D], before unit length; the gradient goes to the centroids."""
    with torch.no_grad():
        parts = vectors.view(len(vectors), len(codebook), -1)
        away = codebook.square().sum(-1) / 2 - torch.einsum("bmw,mkw->bmk", parts, codebook)
        code = away.argmin(-1)
    return codebook[torch.arange(len(codebook), device=code.device), code].flatten(1)


def _balance(variance: Tensor, slices: int, width: int) -> Tensor:
    """Deal axes, largest variance first, to the open slice with the least product of variances: int64 [D]."""
    total = [0.0] * slices
    members: list[list[int]] = [[] for _ in range(slices)]
    for axis in torch.argsort(variance, descending=True).tolist():
        m = min((i for i in range(slices) if len(members[i]) < width), key=lambda i: (total[i], i))
        members[m].append(axis)
        total[m] += float(torch.log(variance[axis] * len(variance) * 16 + 1.0))
    return torch.tensor([axis for group in members for axis in group])


def _k_means(points: Tensor, count: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """Lloyd's algorithm: points [N, W] -> centroids [count, W]; empty clusters restart at random points."""
    pick = torch.randint(len(points), (count,), generator=generator)
    centres = points[pick].clone()
    for _ in range(rounds):
        near = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, near, points)
        sizes = torch.bincount(near, minlength=count).float()[:, None]
        fresh = points[torch.randint(len(points), (count,), generator=generator)]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1.0), fresh)
    return centres
