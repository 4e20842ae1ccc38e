"""Train the autoregressive peer of the benchmarks: as many parameters, the same tokens, the same optimizers.

python -m benchmarks.train_language_model DATA... -o FILE [--validation FILE] [--steps N] [--resume]

DATA: text files as `colazip train` reads them, or the `train` folder of a `colazip train` run, whose tokens
are taken as they are. The tokenizer and the number of parameters are those of --model. FILE holds the model
and all that --resume goes on from; metrics are written beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.command import note, run_command
from colazip.errors import InputError
from colazip.evaluate.language_model import (
    LanguageModel,
    LanguageModelConfig,
    as_checkpoint,
    matching,
    text_bits,
)
from colazip.tokenizer import Tokenizer
from colazip.train.data import TokenStore, batches, read_texts
from colazip.train.optimize import (
    Descent,
    Metrics,
    check_finite,
    fitting,
    learning_rate,
    load_checkpoint,
    save_atomic,
    to_tensors,
)

_CHUNK = 1 << 22  # tokens looked at at once
_LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Schedule:
    """One training run. tokens: of a batch, padding included. decay_from: a fraction of `steps`."""

    steps: int
    tokens: int = 6144
    lr: float = 3e-3
    warmup: int = 100
    decay_from: float = 0.4
    weight_decay: float = 0.05
    evaluate_every: int = 500
    save_every: int = 250
    seed: int = 0


def loss_of(model: LanguageModel, tokens: Tensor, counts: Tensor) -> tuple[Tensor, int]:
    """(mean loss in nats a token, tokens that count) of tokens int64 [B, T], counts int64 [B]."""
    real = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
    total = functional.cross_entropy(model(tokens)[real], tokens[real], reduction="sum")
    count = int(counts.sum())
    return total / count, count


def optimizers(model: LanguageModel, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """As the Text VAE is trained: Muon for the matrices inside the layers, AdamW for everything else."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("layers.")]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or not n.startswith("layers.")]
    return [
        torch.optim.Muon(
            inner, lr=schedule.lr, weight_decay=schedule.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(outer, lr=schedule.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    config: LanguageModelConfig,
    schedule: Schedule,
    *,
    store: TokenStore,
    validation: TokenStore | None,
    lengths: np.ndarray,
    out: Path,
    device: torch.device,
    resume: bool,
) -> LanguageModel:
    """Train, or go on from the checkpoint `out`; writes it, and metrics in `out` + .jsonl.

    lengths: bytes of each token, int64 [V]. Raises InputError if the checkpoint does not fit, ColazipError
    when the loss stops being finite.
    """
    torch.manual_seed(schedule.seed)
    model = LanguageModel(config).to(device).train()
    descent = Descent(model, optimizers(model, schedule))
    step = 0
    if resume:
        state = load_checkpoint(out, device)
        with fitting(out):
            model.load_state_dict(state["model"])
            descent.load(state["optimizers"])
            step = state["step"]
    metrics = Metrics(out.with_name(out.name + ".jsonl"), step=step)
    stream = batches(
        store,
        store.segments(config.context),
        patch=1,
        patches=schedule.tokens,
        seed=schedule.seed,
        skip=step,
    )
    losses: list[float] = []
    started, seen = time.monotonic(), 0
    while step < schedule.steps:
        batch = next(stream)
        loss, count = loss_of(model, *to_tensors(batch, device))
        norm = descent.backward(loss)
        losses.append(float(loss.detach()))
        check_finite(losses[-1], norm, step, batch, out.parent)
        factor = learning_rate(step, schedule.steps, warmup=schedule.warmup, decay_from=schedule.decay_from)
        descent.step(factor)
        step, seen = step + 1, seen + count
        last = step == schedule.steps
        if step % 50 == 0 or last:
            rate = seen / (time.monotonic() - started)
            bits = sum(losses) / len(losses) / _LN2
            metrics.write({"step": step, "bits_a_token": bits, "lr": factor, "tokens_a_second": rate})
            losses.clear()
        if validation is not None and (step % schedule.evaluate_every == 0 or last):
            metrics.write({"step": step, "validation_bpb": bits_a_byte(model, validation, lengths)})
        if step % schedule.save_every == 0 or last:
            save_atomic({**as_checkpoint(model), "optimizers": descent.state(), "step": step}, out)
    return model.eval()


def bits_a_byte(model: LanguageModel, store: TokenStore, lengths: np.ndarray, records: int = 256) -> float:
    """Bits a byte of text over a fixed sample of records."""
    ends = np.concatenate([[0], store.ends])
    sample = np.random.default_rng(0).permutation(len(store.ends))[:records]
    texts = [np.asarray(store.tokens[ends[i] : ends[i + 1]]).astype(np.int64) for i in sample]
    model.eval()
    bits = text_bits(model, texts).sum()
    model.train()
    return float(bits / sum(int(lengths[text].sum()) for text in texts))


def open_tokens(data: Sequence[Path], folder: Path, tokenizer: Tokenizer, column: str) -> TokenStore:
    """Tokens of a run's folder, or of text files, kept in `folder`. Raises InputError if they are of another
    tokenizer."""
    if len(data) == 1 and data[0].is_dir():
        store = TokenStore.open(data[0])
    else:
        store = TokenStore.build(folder, read_texts(data, column), tokenizer)
    total = 0
    for at in range(0, len(store.tokens), _CHUNK):
        tokens = np.asarray(store.tokens[at : at + _CHUNK])
        total += int(tokenizer.lengths[np.minimum(tokens, tokenizer.size - 1)].sum())
    if total != store.text_bytes:
        raise InputError(f"{data[0]}: its tokens are of another tokenizer than the model's; see --model")
    return store


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Checkpoint to write.")
@click.option("--validation", type=click.Path(path_type=Path), help="Held-out text, a file or a folder.")
@click.option("--text-column", default="text", show_default=True, help="Column that holds the text.")
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option("--parameters", type=click.IntRange(min=1), help="Default: as many as the model's networks.")
@click.option("--steps", type=click.IntRange(min=1), default=6500, show_default=True)
@click.option("--tokens", type=click.IntRange(min=1024), default=6144, show_default=True, help="Of a batch.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint.")
def train_language_model(
    data: tuple[Path, ...],
    out: Path,
    validation: Path | None,
    text_column: str,
    model: Path | None,
    parameters: int | None,
    steps: int,
    tokens: int,
    device: str,
    resume: bool,
) -> None:
    """Train the autoregressive peer on DATA."""
    from benchmarks.compression import tokenizer_of
    from benchmarks.latency import coding_parameters
    from colazip.codec import Codec

    if out.exists() and not resume:
        raise InputError(f"{out}: exists already; --resume goes on with it")
    tokenizer = tokenizer_of(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = out.with_name(out.name + ".tokens")
    store = open_tokens(data, kept / "train", tokenizer, text_column)
    held_out = open_tokens([validation], kept / "validation", tokenizer, text_column) if validation else None
    if parameters is None:
        parameters = coding_parameters(Codec.from_pretrained(model))
    config = matching(tokenizer.size, parameters)
    note(f"{config.parameters:,} parameters: {config}")
    train(
        config,
        Schedule(steps, tokens=tokens),
        store=store,
        validation=held_out,
        lengths=tokenizer.lengths,
        out=out,
        device=torch.device(device),
        resume=resume,
    )


if __name__ == "__main__":
    run_command(train_language_model, "benchmarks.train_language_model")
