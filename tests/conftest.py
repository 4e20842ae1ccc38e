"""Small fixtures of the network tests, and how hypothesis draws. torch is imported only where it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, settings

if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: none of them needs several threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from colazip.config import ModelConfig
    from colazip.nn.vae import TextVAE
    from colazip.tokenizer import Tokenizer

# The same examples every time on CI, so that a red run is about the change; fresh ones everywhere else. CI
# does not look for a smaller example: with a model in the test that takes minutes, and the one found comes
# back on any machine.
settings.register_profile("ci", derandomize=True, phases=[Phase.explicit, Phase.generate], print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Gradients are float sums: two runs are equal only with the same number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """Every part of a model at a size that runs in milliseconds: 512 tokens, two blocks where it matters."""
    from colazip.config import ModelConfig, StackConfig

    return ModelConfig(
        "tiny",
        classes=16,
        slots=32,
        details=3,
        segment=16,
        embedding=16,
        channels=2,
        decoder=StackConfig(32, 2, 2),
        coder=StackConfig(48, 2, 3),
        local_width=24,
        local_hidden=64,
        ngram_rows=128,
        ngram_width=8,
        prior=StackConfig(32, 1, 2),
        prior_block=8,
        vector=16,
        code_bytes=4,
        word_rows=64,
        pointer=16,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """512 tokens, trained on the package's handbook."""
    from colazip.tokenizer import Tokenizer
    from tests.tiny_model import passages

    return Tokenizer.train(passages(), 512)


@pytest.fixture(scope="session")
def tiny_vae(tiny_config: ModelConfig) -> TextVAE:
    """Random weights, those included that training starts at zero: a block of zeros would hide its errors."""
    import torch

    from colazip.nn.vae import TextVAE
    from tests.random_weights import randomize

    vae = TextVAE(tiny_config)
    randomize(vae, seed=1)
    generator = torch.Generator().manual_seed(2)
    token_of = torch.randperm(512, generator=generator).view(16, 32)
    # Of each detail: classes that a gist names whole, all but one token of, something of, and nothing of.
    most = torch.tensor([32, 31, 30, 1, 0, *range(2, 24, 2)])
    limits = torch.stack([most, torch.where(most < 32, most // 3, most), torch.zeros_like(most)])
    vae.readout.set_classes(token_of, limits)
    return vae.eval().requires_grad_(False)
