"""Products for `colazip.nn.portable` by torch's int8 kernel: matrices take a quarter of the memory traffic,
which is what one lane waits for."""

from __future__ import annotations

import numpy as np
import torch

from colazip.nn.exact import int8_kernel_wins
from colazip.nn.grid import MAX_K
from colazip.nn.portable import Product, float_product


def int8_product(weight: np.ndarray) -> Product:
    """The product with int8 [M, K], or NumPy's where torch's int8 product is slow or wrong."""
    if not (int8_kernel_wins() and 1 < weight.shape[1] <= MAX_K):
        return float_product(weight)
    matrix = torch.from_numpy(weight).t()

    def product(q: np.ndarray) -> np.ndarray:
        found: np.ndarray = torch._int_mm(torch.from_numpy(q.astype(np.int8)), matrix).numpy()
        return found.astype(np.float32)

    return product
