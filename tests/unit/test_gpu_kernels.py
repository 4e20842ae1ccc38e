"""Kernels of a GPU, run by Triton's interpreter where there is none; skipped where there is no Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_model import tiny_folder


def test_the_codec_through_kernels_writes_and_reads_the_same() -> None:
    pytest.importorskip("triton")
    if not torch.cuda.is_available() and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        pytest.skip("Triton's interpreter needs NumPy before 2.4")
    environment = {**os.environ, "TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    command = [sys.executable, "-m", "tests.gpu_kernels", str(tiny_folder())]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
