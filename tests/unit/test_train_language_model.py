"""Training the autoregressive peer: it learns, goes on where it stopped, and refuses foreign tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.train_language_model import Schedule, open_tokens, train, train_language_model
from colazip.errors import InputError
from colazip.evaluate.language_model import LanguageModelConfig, from_checkpoint
from colazip.tokenizer import Tokenizer
from colazip.train.optimize import load_checkpoint
from tests.tiny_model import passages, tiny_codec, tiny_folder, write_corpus


def test_learns_and_goes_on(tmp_path: Path) -> None:
    tokenizer = tiny_codec().model.tokenizer
    file, _ = write_corpus(tmp_path)
    store = open_tokens([file], tmp_path / "tokens", tokenizer, "text")
    config = LanguageModelConfig(tokenizer.size, 64, 1, 64, context=32)

    def run(steps: int, out: str, *, resume: bool = False) -> dict[str, torch.Tensor]:
        schedule = Schedule(steps, tokens=1024, lr=1e-2, warmup=1, decay_from=0.0, save_every=3)
        model = train(
            config,
            schedule,
            store=store,
            validation=store,
            lengths=tokenizer.lengths,
            out=tmp_path / out,
            device=torch.device("cpu"),
            resume=resume,
        )
        return model.state_dict()

    run(10, "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert lines[0]["bits_a_token"] < 9  # 512 tokens: 9 bits before anything is learnt
    assert 0 < lines[1]["validation_bpb"] < 9
    state = load_checkpoint(tmp_path / "whole", torch.device("cpu"))
    assert state["step"] == 10 and from_checkpoint(state).config == config
    again = run(10, "whole", resume=True)  # nothing left to do
    assert all(torch.equal(again[name], value) for name, value in state["model"].items())
    with pytest.raises(InputError):
        train(
            LanguageModelConfig(tokenizer.size, 64, 2, 64, context=32),
            Schedule(11),
            store=store,
            validation=None,
            lengths=tokenizer.lengths,
            out=tmp_path / "whole",
            device=torch.device("cpu"),
            resume=True,
        )


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    file, _ = write_corpus(tmp_path)
    open_tokens([file], tmp_path / "tokens", tiny_codec().model.tokenizer, "text")
    other = Tokenizer.train(passages()[:20], 400)
    with pytest.raises(InputError, match="another tokenizer"):
        open_tokens([tmp_path / "tokens"], tmp_path / "unused", other, "text")


def test_command(tmp_path: Path) -> None:
    file, _ = write_corpus(tmp_path)
    out = tmp_path / "lm.pt"
    arguments = [file, "-o", out, "--model", tiny_folder(), "--steps", 1, "--tokens", 1024]
    done = CliRunner().invoke(train_language_model, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0 and out.exists()
    with pytest.raises(InputError, match="--resume"):
        CliRunner().invoke(train_language_model, list(map(str, arguments)), catch_exceptions=False)
