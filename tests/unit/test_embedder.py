"""Archives on another embedder's vectors: packed, searched, refused; their codes against exact cosines."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import colazip
from colazip import Archive, Embedder, quantizer
from colazip.errors import FormatError, MissingLayerError, ModelMismatchError, UsageError
from colazip.layers import BLOCK_BYTES
from colazip.presets import FAST
from tests.plain_codec import PlainCodec

WIDTH = 24
TOPICS = ["bread", "boats", "tea", "gardens", "stars", "maps"] * 3
TEXTS = [f"record {i} is about {topic}" for i, topic in enumerate(TOPICS)]


def words(texts: list[str]) -> np.ndarray:
    """Sums of random vectors of the words of each text, float64 [n, 24]."""
    rows = np.zeros((len(texts), WIDTH))
    for row, text in zip(rows, texts, strict=True):
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            row += np.random.default_rng(seed).standard_normal(WIDTH)
    return rows


def pack(path: Path, records=TEXTS, embedder=words, **options):
    return Archive.pack(path, records, codec=PlainCodec(passage_bytes=200), embedder=embedder, **options)


@pytest.mark.parametrize(
    "options", [{}, {"preset": FAST}, {"layers": ["search"]}, {"layers": ["search", "gist"]}]
)
def test_search_runs_on_its_vectors(tmp_path: Path, options: dict) -> None:
    summary = pack(tmp_path / "a.cola", **options)
    assert summary.file_bytes == (tmp_path / "a.cola").stat().st_size and summary.records == len(TEXTS)
    assert [p.name for p in tmp_path.iterdir()] == ["a.cola"]
    with colazip.open(tmp_path / "a.cola", PlainCodec(), embedder=words) as archive:
        query = words(["tea and bread"])[0]
        cosines = words(TEXTS) @ query / np.linalg.norm(words(TEXTS), axis=1) / np.linalg.norm(query)
        hits = archive.search("tea and bread", 4)
        assert [hit.score for hit in hits] == pytest.approx(np.sort(cosines)[::-1][:4], abs=0.02)
        assert archive.info()["embedder"] == {"name": "words", "width": WIDTH, "kind": "int8"}
        assert archive.verify()["records"] == len(TEXTS)
        if archive.holds_text:
            assert [r.data.decode() for r in archive] == TEXTS


def test_passages_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    long = " ".join(["filler words here"] * 5000 + ["the lighthouse keeper sleeps"] + ["more filler"] * 40)
    assert len(long) > BLOCK_BYTES
    pack(tmp_path / "a.cola", [b"\xff\x00" * 40, "", *TEXTS, long])
    with colazip.open(tmp_path / "a.cola", PlainCodec(), embedder=words) as archive:
        (hit,) = archive.search("the lighthouse keeper sleeps", 1)
        assert hit.id == str(len(TEXTS) + 2) and "lighthouse" in hit.text
        assert hit.span is not None and archive.get(hit.id)[slice(*hit.span)].decode() == hit.text
        archive.verify()


def test_without_the_embedder_all_but_search_works(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    pack(path)
    with Archive(path, PlainCodec()) as archive:
        assert archive.get("3").decode() == TEXTS[3]
        assert {hit.id for hit in archive.similar("3", 2)} == {"9", "15"}  # the others about its topic
        archive.verify()
        with pytest.raises(UsageError, match=r"'words' \(24 floats\); open it with .*embedder"):
            archive.search("tea")
        archive.strip(["search"], tmp_path / "s.cola")
        archive.strip(["exact"], tmp_path / "e.cola")
    with Archive(tmp_path / "e.cola", PlainCodec(), embedder=words) as archive:
        assert len(archive.search("tea", 3)) == 3
        archive.verify()
    with Archive(tmp_path / "s.cola", PlainCodec()) as archive:
        assert archive.manifest.embedder is None
        with pytest.raises(MissingLayerError):
            archive.search("tea")


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "a.cola")
    with pytest.raises(ModelMismatchError, match="'words', not those of 'other'"):
        Archive(tmp_path / "a.cola", PlainCodec(), embedder=Embedder(words, "other"))
    narrow = Embedder(lambda texts: words(texts)[:, :8], "words")
    with (
        Archive(tmp_path / "a.cola", PlainCodec(), embedder=narrow) as archive,
        pytest.raises(ModelMismatchError, match="8 floats; it was packed with 24"),
    ):
        archive.search("tea")
    Archive.pack(tmp_path / "b.cola", TEXTS, codec=PlainCodec())
    with pytest.raises(ModelMismatchError, match="the model's own"):
        Archive(tmp_path / "b.cola", PlainCodec(), embedder=words)


@pytest.mark.parametrize(
    ("embedder", "message"),
    [
        (lambda texts: words(texts), "no name"),
        (Embedder(lambda texts: words(texts)[0], "flat"), r"must be \[18, width\]"),
        (Embedder(lambda texts: words(texts)[1:], "short"), "for 18 texts"),
        (Embedder(lambda texts: words(texts) * np.nan, "nan"), "not finite"),
        (Embedder(lambda texts: [["a"]] * len(texts), "strings"), "no float array"),
        (Embedder(words, "uneven", code_bytes=5), "do not divide"),
    ],
)
def test_embedders_that_do_not_work(tmp_path: Path, embedder, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        pack(tmp_path / "a.cola", embedder=embedder)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="leave out search"):
        pack(tmp_path / "a.cola", layers=["gist", "exact"])


def test_nothing_to_embed(tmp_path: Path) -> None:
    for records in ([], [b"\xff"]):
        pack(tmp_path / "a.cola", records, overwrite=True)
        with Archive(tmp_path / "a.cola", PlainCodec(), embedder=words) as archive:
            assert archive.search("tea") == []
            archive.verify()


def test_quantizers() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((2000, 8)).astype(np.float32) @ rng.standard_normal((8, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert quantizer.train(rows[:200], 200).kind == quantizer.INT8
    assert (
        quantizer.train(rows, 500).kind == quantizer.INT8
    )  # its codebook would be larger than what it saves
    product = quantizer.train(rows, len(rows))
    assert (product.kind, product.code_bytes) == (quantizer.PQ, 4)
    assert quantizer.train(rows, len(rows), 16).code_bytes == 16
    for made, least in ((quantizer.train(rows, len(rows), 32), 0.9999), (product, 0.9)):
        again = quantizer.load(made.kind, 32, made.code_bytes, made.data)
        assert np.array_equal(again.codebook, made.codebook)
        codes = made.codes(rows)
        decoded = made.codebook[np.arange(made.code_bytes), codes].reshape(len(rows), -1)
        cosines = (decoded * rows).sum(1) / np.linalg.norm(decoded, axis=1)
        assert cosines.mean() > least
        for data in (made.data[:-1], made.data + b"0", b"\xff" * len(made.data)):
            with pytest.raises(FormatError):
                quantizer.load(made.kind, 32, made.code_bytes, data)
    with pytest.raises(FormatError):
        quantizer.load("opq", 32, 4, product.data)
