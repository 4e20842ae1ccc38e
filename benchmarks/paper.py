"""The paper's table, small: the full float model beside an autoregressive one of the same size and data.

python -m benchmarks.paper DATA... --test FILE.parquet -o FOLDER [--steps N] [--widths 64,96,128]

Trains both sides at three sizes over the same tokenizer, text and number of tokens (or loads what FOLDER
holds from an earlier call), and prints side by side: bits a byte and perplexity on held-out text, latency a
token, continuation, meaning kept at an eighth of the size, and bits a byte over training compute. colazip's
archive with the package's model stands beside them where the comparison makes sense. What can't be said is
marked missing, with why. At the steps that a CPU allows all of these models are far from trained: read the
columns against each other, not against the paper's.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks import fidelity
from benchmarks.command import note, run_command
from benchmarks.corpus import read_corpus
from benchmarks.train_language_model import Schedule, open_tokens, train
from colazip.archive import Archive
from colazip.codec import Codec
from colazip.errors import InputError
from colazip.evaluate.cola import continue_tokens, elbo_bits
from colazip.evaluate.embedder import Embedder
from colazip.evaluate.language_model import LanguageModel, from_checkpoint, matching, text_bits
from colazip.evaluate.overlap import bleu, rouge_l
from colazip.evaluate.table import markdown
from colazip.layers import EXACT, GIST
from colazip.nn.cola import ColaConfig, ColaVAE
from colazip.nn.cola_dit import ColaDiT
from colazip.tokenizer import Tokenizer
from colazip.train.cola import ColaRecipe, StageSchedule, run_cola
from colazip.train.cola_folder import load_cola
from colazip.train.data import TokenStore, read_texts
from colazip.train.distributed import Parallel
from colazip.train.optimize import load_checkpoint
from colazip.train.plan import forward_flops, plan

CONTEXT, PROMPT, ANSWER = 256, 64, 64  # tokens
SOLVER_STEPS = 8  # a block
FEWER_STEPS = (4, 2, 1)


def cola_recipe(vocabulary: int, width: int, steps: int, tokens: int) -> ColaRecipe:
    """A small model of the paper's kind; a third of the steps for the VAE alone, as much text in all as the
    other side reads in `steps`."""
    model = ColaConfig(
        f"paper-{width}",
        vocabulary=vocabulary,
        context=CONTEXT,
        vae_width=width,
        vae_hidden=4 * width,
        vae_layers=2,
        vae_heads=width // 32,
        prior_width=width,
        prior_layers=4,
        prior_heads=width // 32,
    )
    first = StageSchedule(
        max(1, steps // 3),
        tokens=tokens,
        micro_batches=1,
        lr=2e-3,
        warmup=max(1, steps // 20),
        average=0.99,
        save_every=max(10, steps // 4),
    )
    second = replace(first, steps=max(1, steps - steps // 3), seed=1)
    return ColaRecipe(model, first, second, parallel=Parallel(precision="float32"))


Answer = Callable[[Tensor, int], Tensor]  # prompts int64 [B, T], how many tokens -> int64 [B, n]


@dataclass(frozen=True)
class Side:
    """One trained model: what it took, and how to ask it. bits: of each text, float64 [N]; sooner: answers in
    fewer solver steps, if there are such."""

    name: str
    parameters: int
    flops: float
    bits: Callable[[Sequence[np.ndarray]], np.ndarray]
    answer: Answer
    sooner: Mapping[int, Answer] = field(default_factory=dict)


def cola_side(recipe: ColaRecipe, data: Sequence[Path], validation: Path, column: str, folder: Path) -> Side:
    """The full float model, trained into `folder` unless it is there."""
    if not (folder / "model").exists():
        note(f"training {recipe.model.name}")
        resume = (folder / "recipe.json").exists()
        run_cola(recipe, data=data, validation=[validation], out=folder, text_column=column, resume=resume)
    vae, prior, _ = load_cola(folder / "model")
    parameters = sum(p.numel() for part in (vae, prior) for p in part.parameters())
    flops = sum(stage.flops for stage in plan(recipe, 1))
    answers = {
        steps: partial(continue_tokens, vae, prior, steps=steps) for steps in (SOLVER_STEPS, *FEWER_STEPS)
    }
    return Side(
        recipe.model.name,
        parameters,
        flops,
        lambda texts: _elbo(vae, prior, texts),
        answers.pop(SOLVER_STEPS),
        answers,
    )


def share(out: Path, folder: Path, tokenizer: Tokenizer) -> None:
    """A run's folder that takes tokenizer and tokens as `out` has them."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    for name in ("train", "validation"):
        if not (folder / name).exists():
            (folder / name).symlink_to((out / name).resolve(), target_is_directory=True)


def _elbo(vae: ColaVAE, prior: ColaDiT, texts: Sequence[np.ndarray]) -> np.ndarray:
    """Upper bounds of the bits of texts (tokens int64 [T]), each cut into pieces of the context."""
    pieces = [(n, t[at : at + CONTEXT]) for n, t in enumerate(texts) for at in range(0, len(t), CONTEXT)]
    pieces.sort(key=lambda piece: len(piece[1]))
    bits = np.zeros(len(texts))
    for lo in range(0, len(pieces), 8):
        part = pieces[lo : lo + 8]
        tokens = torch.zeros(len(part), len(part[-1][1]), dtype=torch.int64)
        for row, (_, piece) in enumerate(part):
            tokens[row, : len(piece)] = torch.from_numpy(piece)
        counts = torch.tensor([len(piece) for _, piece in part])
        found = elbo_bits(vae, prior, tokens, counts, steps=SOLVER_STEPS, seed=lo)
        for (n, _), value in zip(part, found.tolist(), strict=True):
            bits[n] += value
    return bits


def language_model_side(
    parameters: int, steps: int, tokens: int, store: TokenStore, tokenizer: Tokenizer, file: Path
) -> Side:
    """The autoregressive peer, trained into `file` unless it is there."""
    config = matching(tokenizer.size, parameters, CONTEXT)
    if not file.exists():
        note(f"training the autoregressive model of {config.parameters:,} parameters")
        schedule = Schedule(steps, tokens=tokens, warmup=max(1, steps // 20))
        train(
            config,
            schedule,
            store=store,
            validation=None,
            lengths=tokenizer.lengths,
            out=file,
            device=torch.device("cpu"),
            resume=False,
        )
    model = from_checkpoint(load_checkpoint(file, torch.device("cpu")))
    if model.config != config:
        raise InputError(f"{file}: is of another size; name another folder")
    flops = 3.0 * forward_flops(lambda: model(torch.zeros(1, CONTEXT, dtype=torch.int64))) / CONTEXT
    return Side(
        "autoregressive",
        config.parameters,
        flops * steps * tokens,
        lambda texts: text_bits(model, texts),
        lambda prompts, count: _greedy(model, prompts, count),
    )


@torch.inference_mode()
def _greedy(model: LanguageModel, prompts: Tensor, count: int) -> Tensor:
    """The likeliest continuation, int64 [B, count], of prompts int64 [B, T]: they are read in one pass, then
    one step a token."""
    cache = model.cache(len(prompts))
    said = [model.prefill(prompts, cache).argmax(-1)]
    while len(said) < count:
        said.append(model.step(said[-1], cache).argmax(-1))
    return torch.stack(said, 1)


def latency(answer: Answer, prompts: Tensor, batch: int) -> float:
    """Seconds a token of a continuation, everything counted, best of three."""
    rows = prompts[torch.arange(batch) % len(prompts)]
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        answer(rows, ANSWER)
        best = min(best, time.perf_counter() - start)
    return best / (batch * ANSWER)


def continuation(
    answer: Answer, prompts: Tensor, answers: Tensor, tokenizer: Tokenizer
) -> tuple[float, float]:
    """(ROUGE-L, BLEU) of continuations of prompts [B, PROMPT] against the texts' own [B, ANSWER]."""
    said = [_text(tokenizer, row) for row in answer(prompts, ANSWER)]
    wanted = [_text(tokenizer, row) for row in answers]
    rouge = float(np.mean([rouge_l(a, b) for a, b in zip(said, wanted, strict=True)]))
    return rouge, bleu(said, wanted)


def _text(tokenizer: Tokenizer, tokens: Tensor) -> str:
    return tokenizer.decode(tokens.tolist()).decode("utf-8", "replace")


def archive_bits(records: Sequence[bytes], codec: Codec) -> float:
    """Bits of the gist and the exact layer of all records in one archive, container included."""
    with tempfile.TemporaryDirectory(prefix="colazip-bench-") as folder:
        Archive.pack(Path(folder) / "a", records, codec=codec, layers=(GIST, EXACT))
        return (Path(folder) / "a").stat().st_size * 8.0


def meaning(records: Sequence[bytes], codec: Codec) -> tuple[str, str]:
    """Cells of the row on meaning at 8x: the archive's readings, and why if there is no judge."""
    try:
        judge = Embedder()
    except InputError as error:
        return f"missing: {error}", "missing: no judge"
    with tempfile.TemporaryDirectory(prefix="colazip-bench-") as folder:
        rows = fidelity.measure(records, codec, judge.embed, Path(folder))
    read = [f"{row.cosine:.3f} at {row.ratio:.1f}x" for row in rows if row.ratio is not None]
    # An eighth of the size under a coder of 4 to 5x holds about half of a text.
    half = next(row.cosine for row in rows if row.name == "original less 50% of its words")
    return ", ".join(read), f"missing: it codes exactly; half of the words alone keep {half:.3f}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--test", required=True, type=click.Path(path_type=Path), help="Held-out Parquet file.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder of all runs.")
@click.option("--text-column", default="text", show_default=True, help="Column that holds the text.")
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option("--widths", default="64,96,128", show_default=True, help="Sizes, ascending.")
@click.option("--steps", type=click.IntRange(min=3), default=3000, show_default=True)
@click.option("--tokens", type=click.IntRange(min=256), default=4096, show_default=True, help="Of a step.")
@click.option(
    "--records", type=click.IntRange(min=1), default=64, show_default=True, help="Of the test file."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
def paper(
    data: tuple[Path, ...],
    test: Path,
    out: Path,
    text_column: str,
    model: Path | None,
    widths: str,
    steps: int,
    tokens: int,
    records: int,
    json_path: Path | None,
) -> None:
    """Train or load both sides at each size and print Markdown tables."""
    try:
        sizes = [int(width) for width in widths.split(",")]
    except ValueError:
        sizes = []
    if not sizes or any(width < 32 or width % 32 for width in sizes):
        raise InputError(f"--widths {widths}: multiples of 32 joined by commas, like 64,96,128")
    codec = Codec.from_pretrained(model)
    tokenizer = codec.model.tokenizer
    corpus = read_corpus(test, text_column, records)
    texts = tokenizer.encode(corpus.records)
    long = [torch.from_numpy(t[: PROMPT + ANSWER]) for t in texts if len(t) >= PROMPT + ANSWER]
    if not long:
        raise InputError(f"{test}: no record of {PROMPT + ANSWER} tokens among {records}; raise --records")
    table = torch.stack(long)
    prompts, answers = table[:, :PROMPT], table[:, PROMPT:]
    out.mkdir(parents=True, exist_ok=True)
    TokenStore.build(out / "train", read_texts(data, text_column), tokenizer)
    TokenStore.build(out / "validation", read_texts([test], text_column), tokenizer)
    store = open_tokens([out / "train"], out, tokenizer, text_column)
    pairs = []
    for width in sizes:
        recipe = cola_recipe(tokenizer.size, width, steps, tokens)
        folder = out / f"cola-{width}-{steps}x{tokens}"
        share(out, folder, tokenizer)
        own = cola_side(recipe, data, test, text_column, folder)
        file = out / f"ar-{width}-{steps}x{tokens}.pt"
        pairs.append((own, language_model_side(own.parameters, steps, tokens, store, tokenizer, file)))
    note("measuring")
    bits = [tuple(float(side.bits(texts).sum()) for side in pair) for pair in pairs]
    rows = compare(pairs[-1], bits[-1], corpus.records, (prompts, answers), codec)
    click.echo(markdown([("largest size", "float model", "autoregressive", "archive"), *rows]))
    click.echo()
    curve = [
        (
            f"{side.parameters / 1e6:.2f} M {side.name}",
            f"{side.flops / 1e12:.4g}",
            f"{value / corpus.raw_bytes:.3f}",
        )
        for pair, values in zip(pairs, bits, strict=True)
        for side, value in zip(pair, values, strict=True)
    ]
    click.echo(markdown([("model", "training TFLOP", "bits a byte"), *curve]))
    click.echo(
        f"\n{test.name}: {len(corpus.records):,} records, {corpus.raw_bytes:,} bytes; {len(prompts)}"
        f" continuations of {ANSWER} tokens after {PROMPT}.\n{steps:,} steps of {tokens:,} tokens a side and"
        f" size, {torch.get_num_threads()} thread(s), float32, CPU. The float model: a bound\nfrom one sample"
        f" of the latents, {SOLVER_STEPS} solver steps a block. Archive: the model {codec.name!r},\ngist and"
        " exact layer, trained on its own schedule."
    )
    if json_path:
        result = {"table": rows, "curve": curve, "steps": steps, "tokens": tokens, "records": records}
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(
    pair: tuple[Side, Side],
    spent: tuple[float, ...],
    records: Sequence[bytes],
    pieces: tuple[Tensor, Tensor],
    codec: Codec,
) -> list[tuple[str, str, str, str]]:
    """Rows of the main table: figure, float model, autoregressive model, archive.

    spent: bits of all records under each model. pieces: prompts and how they go on.
    """
    tokenizer = codec.model.tokenizer
    raw, count = sum(map(len, records)), sum(map(len, tokenizer.encode(records)))
    bits = [*spent, archive_bits(records, codec)]
    rows = [
        ("parameters, M", *(f"{side.parameters / 1e6:.2f}" for side in pair), "its own"),
        ("training TFLOP", *(f"{side.flops / 1e12:.4g}" for side in pair), "its own"),
        ("bits a byte", f"<= {bits[0] / raw:.3f}", f"{bits[1] / raw:.3f}", f"{bits[2] / raw:.3f}"),
        ("perplexity a token", *(f"{2.0 ** (value / count):.4g}" for value in bits)),
    ]
    archive = "missing: benchmarks.latency times its readings"
    for batch in (1, 32):
        times = [f"{latency(side.answer, pieces[0], batch) * 1e3:.3f}" for side in pair]
        rows.append((f"ms a token, batch {batch}", *times, archive))
    scores = [continuation(side.answer, *pieces, tokenizer) for side in pair]
    unable = "missing: not measured here"
    rows.append(("continuation, ROUGE-L", *(f"{rouge:.3f}" for rouge, _ in scores), unable))
    rows.append(("continuation, BLEU", *(f"{value:.4f}" for _, value in scores), unable))
    for steps, answer in pair[0].sooner.items():
        times = [f"{latency(answer, pieces[0], batch) * 1e3:.3f}" for batch in (1, 32)]
        rouge, overlap = continuation(answer, *pieces, tokenizer)
        name = f"in {steps} solver step{'s' * (steps > 1)}: ms a token, batch 1 and 32; ROUGE-L, BLEU"
        rows.append(
            (name, f"{', '.join(times)}; {rouge:.3f}, {overlap:.4f}", "draws no latents", "draws none")
        )
    gone = "missing: the test text has no summaries"
    rows.append(("summaries, ROUGE-L", gone, gone, gone))
    read, why = meaning(records, codec)
    rows.append(("cosine at about 8x", "missing: its latents are floats, no code of them exists", why, read))
    return rows


if __name__ == "__main__":
    run_command(paper, "benchmarks.paper")
