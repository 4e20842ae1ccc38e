"""One record of text: how long its gist reading and its exact text take beside an autoregressive model.

python -m benchmarks.latency [--record-bytes 2000] [--repeat N] [--model PATH] [--language-model FILE]

Both sides run in this process, batch 1, on the CPU, in turns, once colazip has loaded its compiled loops,
as it does after half a megabyte of text. The autoregressive side is a plain float transformer of as many
parameters as colazip's coding networks, over the same tokens, with a KV cache: as a decoder it generates
greedily as many tokens as the record has, one step a token; as a coder it decodes the record's own tokens,
one step and one entropy-coded symbol a token. Its weights are random unless --language-model names a
checkpoint: what is computed is the same, only the texts and the sizes mean nothing.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from benchmarks.command import note, run_command
from benchmarks.records import prose
from colazip.archive import Archive
from colazip.codec import Codec
from colazip.errors import InputError
from colazip.evaluate.language_model import (
    LanguageModel,
    decode_tokens,
    encode_tokens,
    from_checkpoint,
    generate,
    matching,
)
from colazip.evaluate.table import markdown
from colazip.layers import GIST
from colazip.nn.loading import expect_work
from colazip.train.optimize import load_checkpoint


@dataclass(frozen=True)
class Row:
    """Median seconds of one job on both sides."""

    job: str
    own: float
    autoregressive: float

    @property
    def factor(self) -> float:
        """How many times faster colazip is."""
        return self.autoregressive / self.own


def coding_parameters(codec: Codec) -> int:
    """Weights of all coding networks: those that are trained, whether floats or shipped as integers."""
    from colazip.nn.exact import Quantized

    vae = codec.model.vae
    frozen = sum(m.q.numel() for m in vae.modules() if isinstance(m, Quantized) and m.weight is None)
    return frozen + sum(p.numel() for p in vae.parameters())


def peer_of(codec: Codec, checkpoint: Path | None) -> LanguageModel:
    """The language model of a checkpoint, or one with random weights and as many parameters as the codec's
    networks. Raises InputError if a checkpoint is of another vocabulary."""
    vocabulary = codec.model.config.vocabulary
    if checkpoint is None:
        torch.manual_seed(0)
        model = LanguageModel(matching(vocabulary, coding_parameters(codec)))
        return model.eval().requires_grad_(False)
    model = from_checkpoint(load_checkpoint(checkpoint, torch.device("cpu")))
    if model.config.vocabulary != vocabulary:
        raise InputError(f"{checkpoint}: is over {model.config.vocabulary} tokens, not {vocabulary}")
    return model


def median_seconds(jobs: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Wall clock of each job, the jobs in turns so that a busy moment hits all of them; once before to warm
    up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeat + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(some) for name, some in seconds.items()}


def measure(codec: Codec, model: LanguageModel, record: bytes, repeat: int, folder: Path) -> list[Row]:
    """Both jobs on both sides. Raises ValueError if a text comes back changed, or if the model keeps the
    record plain, so that there would be nothing to decode."""
    (tokens,) = codec.model.tokenizer.encode([record])
    gist = codec.encode_blocks([[record]], (GIST,))
    if set(gist[0].layers) != {GIST}:
        raise ValueError("the model codes this record worse than zstd does: nothing to time")
    Archive.pack(folder / "one", [record], codec=codec)
    note(f"coding {len(tokens)} tokens one by one under the autoregressive model")
    stream = encode_tokens(model, tokens)
    if (decode_tokens(model, stream, len(tokens)) != tokens).any():
        raise ValueError("the autoregressive coder gave back other tokens")

    def get() -> None:
        with Archive(folder / "one", codec) as archive:  # anew each time: a block once read is kept
            if archive.get(next(archive.ids())) != record:
                raise ValueError("the record came back changed")

    note("timing")
    seconds = median_seconds(
        {
            "gist": lambda: codec.read_gist(gist),
            "generate": lambda: generate(model, len(tokens)),
            "get": get,
            "decode": lambda: decode_tokens(model, stream, len(tokens)),
        },
        repeat,
    )
    return [
        Row("gist reading, bytes to text; greedy generation", seconds["gist"], seconds["generate"]),
        Row("exact get of the record; arithmetic decoding", seconds["get"], seconds["decode"]),
    ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--record-bytes", type=click.IntRange(1, 60_000), default=2000, show_default=True)
@click.option("--repeat", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option(
    "--language-model", type=click.Path(path_type=Path), help="Checkpoint in place of random weights."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
def latency(
    record_bytes: int,
    repeat: int,
    model: Path | None,
    language_model: Path | None,
    json_path: Path | None,
) -> None:
    """Time one record of English on both sides, print a Markdown table."""
    codec = Codec.from_pretrained(model)
    expect_work(1 << 20)
    peer = peer_of(codec, language_model)
    record = prose(record_bytes)
    with tempfile.TemporaryDirectory(prefix="colazip-bench-") as folder:
        rows = measure(codec, peer, record, repeat, Path(folder))
    shape, own = peer.config, coding_parameters(codec)
    kind = "random weights, which compute the same" if language_model is None else "trained weights"
    lines = [("one record, batch 1, CPU: median seconds", "colazip", "autoregressive", "times faster")]
    lines += [(row.job, f"{row.own:.4f}", f"{row.autoregressive:.4f}", f"{row.factor:.1f}") for row in rows]
    click.echo(markdown(lines))
    click.echo(
        f"\nA record of {record_bytes:,} bytes, {len(codec.model.tokenizer.encode([record])[0]):,} tokens,"
        f" {repeat} runs in turns, {torch.get_num_threads()} thread(s).\ncolazip: {own:,} parameters in the"
        f" coding networks. Autoregressive: {shape.parameters:,} parameters (width\n{shape.width},"
        f" {shape.layers} layers, MLP {shape.hidden}), float32, KV cache, {kind}."
    )
    if json_path:
        result = {
            "record_bytes": record_bytes,
            "repeat": repeat,
            "threads": torch.get_num_threads(),
            "model": {"name": codec.name, "id": codec.id, "parameters": own},
            "autoregressive": asdict(shape) | {"parameters": shape.parameters, "weights": kind},
            "jobs": [asdict(row) | {"factor": row.factor} for row in rows],
        }
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(latency, "benchmarks.latency")
