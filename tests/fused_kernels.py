"""The kernels of training beside the layers that they stand for: prints gaps, fails where one is too large.

python tests/fused_kernels.py, with TRITON_INTERPRET=1 where there is no GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from colazip.nn.exact import _Linear, _RoundRows
from colazip.nn.fused import FusedLinear, FusedMLP, FusedProjection, FusedRounding
from colazip.nn.layers import _round_rows, _round_values

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORWARD, BACKWARD = 1e-3, 0.03  # gaps over norms: gradients go through bfloat16


def gap(mine: Tensor | None, theirs: Tensor | None) -> float:
    assert mine is not None and theirs is not None
    mine, theirs = mine.detach().float(), theirs.detach().float()
    return float((mine - theirs).norm() / (theirs.norm() + 1e-12))


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().to(DEVICE).requires_grad_() for t in tensors]


def check(name: str, mine: list[Tensor], theirs: list[Tensor], a: list[Tensor], b: list[Tensor]) -> None:
    grads = [torch.randn(t.shape, device=DEVICE) for t in theirs]
    torch.autograd.backward(mine, [g.to(t.dtype) for g, t in zip(grads, mine, strict=True)])
    torch.autograd.backward(theirs, grads)
    forward = max(gap(m, t) for m, t in zip(mine, theirs, strict=True))
    backward = max(gap(m.grad, t.grad) for m, t in zip(a, b, strict=True))
    print(f"{name}: {forward:.2e} forward, {backward:.2e} backward")
    assert forward < FORWARD and backward < BACKWARD, name


def main() -> None:
    torch.manual_seed(0)
    for rows, inputs, outputs in ((70, 48, 33), (64, 320, 128), (40, 192, 2)):
        for norm in (True, False):
            x, w = torch.randn(rows, inputs), torch.randn(outputs, inputs)
            x[3] = 0.0
            a, b = leaves(x, w), leaves(x, w)
            name = f"linear {rows} x {inputs} x {outputs}, norm {norm}"
            check(name, [FusedLinear.apply(*a, norm)], [_Linear.apply(*b, norm)], a, b)
    x, up, down = torch.randn(50, 96), torch.randn(160, 96) * 0.1, torch.randn(96, 160)
    a, b = leaves(x, up, down), leaves(x, up, down)
    theirs = _Linear.apply(torch.relu(_Linear.apply(b[0], b[1], True)).square(), b[2], False)
    check("mlp", [FusedMLP.apply(*a)], [theirs], a, b)
    heads, width = 3, 16
    x = torch.randn(2, 5, 3 * heads * width) * 2
    x[0, 0] *= 3  # some values are clipped
    a, b = leaves(x), leaves(x)
    q, k, v = b[0].view(2, 5, 3, heads, width).permute(2, 0, 3, 1, 4)
    whole = [_round_rows(q), _round_rows(k), _round_values(v)]
    check("projection", list(FusedProjection.apply(a[0], heads)), whole, a, b)
    a, b = leaves(torch.randn(50, 24)), leaves(torch.zeros(1))
    assert torch.equal(FusedRounding.apply(a[0]), _RoundRows.apply(a[0]))


if __name__ == "__main__":
    main()
