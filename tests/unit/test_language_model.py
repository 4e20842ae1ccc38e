"""The autoregressive peer: it codes and decodes, its two passes agree, it sees only what came before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from colazip.errors import FormatError, InputError
from colazip.evaluate.language_model import (
    START,
    LanguageModel,
    LanguageModelConfig,
    as_checkpoint,
    decode_tokens,
    encode_tokens,
    from_checkpoint,
    generate,
    matching,
    text_bits,
)

SMALL = LanguageModelConfig(vocabulary=300, width=64, layers=2, hidden=96, context=16)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Untrained, but with weights in every matrix."""
    torch.manual_seed(0)
    made = LanguageModel(SMALL)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return made.eval().requires_grad_(False)


def tokens(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, SMALL.vocabulary, count)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 50])
def test_tokens_come_back(model: LanguageModel, count: int) -> None:
    data = encode_tokens(model, tokens(count))
    assert (decode_tokens(model, data, count) == tokens(count)).all()


def test_counted_bits_are_what_the_coder_writes(model: LanguageModel) -> None:
    texts = [tokens(n, seed=n) for n in (40, 3, 0, 17)]
    bits = text_bits(model, texts, batch_tokens=64)
    for text, ideal in zip(texts, bits, strict=True):
        assert abs(len(encode_tokens(model, text)) - ideal / 8) < 5
    assert bits == pytest.approx([text_bits(model, [t])[0] for t in texts], rel=1e-4)


def test_step_and_parallel_pass_agree(model: LanguageModel) -> None:
    text = torch.from_numpy(tokens(16))
    cache, last = model.cache(), torch.tensor([START])
    for at in range(16):
        step = model.step(last, cache)
        assert torch.allclose(step[0], model(text[None])[0, at], atol=1e-4)
        last = text[at : at + 1]
    for length in (0, 1, 9):
        begun = model.cache()
        assert torch.allclose(
            model.prefill(text[None, :length], begun)[0], model(text[None])[0, length], atol=1e-4
        )
        after = model.step(text[length : length + 1], begun)
        assert torch.allclose(after[0], model(text[None])[0, length + 1], atol=1e-4)


def test_generation_is_greedy(model: LanguageModel) -> None:
    text = generate(model, 16)
    assert (model(torch.from_numpy(text)[None])[0].argmax(-1).numpy() == text).all()
    assert len(generate(model, 40)) == 40 and len(generate(model, 0)) == 0


@pytest.mark.parametrize(("vocabulary", "parameters"), [(8192, 15_000_000), (512, 300_000), (16384, 9 << 20)])
def test_shapes_match_a_parameter_count(vocabulary: int, parameters: int) -> None:
    config = matching(vocabulary, parameters)
    assert abs(config.parameters / parameters - 1) < 0.01
    if parameters < 1_000_000:
        assert sum(p.numel() for p in LanguageModel(config).parameters()) == config.parameters


def test_no_shape_is_too_small_for_the_vocabulary() -> None:
    with pytest.raises(InputError, match="too few"):
        matching(8192, 1000)


def test_checkpoint_round_trip(model: LanguageModel) -> None:
    again = from_checkpoint(as_checkpoint(model))
    assert (generate(again, 8) == generate(model, 8)).all()
    with pytest.raises(InputError):
        from_checkpoint({"config": {}})


def test_damage_is_noticed(model: LanguageModel) -> None:
    data = encode_tokens(model, tokens(30))
    with pytest.raises(FormatError):
        decode_tokens(model, data[:-4], 30)
