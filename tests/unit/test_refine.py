"""Finer vectors: how they are kept, how they rank, and the index that holds them."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.archive import Archive, Record
from colazip.archive.sidecar import build, folder_of
from colazip.embedder import Embedder
from colazip.errors import MissingLayerError, SearchIndexError, UsageError
from colazip.layers import GIST, PLAIN, SEARCH
from colazip.refine import RefinedIndex, mix, pack_finer
from colazip.search import SearchIndex, cosines
from colazip.vectors import pack_nibbles, unpack_nibbles
from tests.plain_codec import PlainCodec

CODEC = PlainCodec(passage_bytes=60)
WORDS = [f"{a}{b}" for a in ("bo", "cat", "dri", "fen", "gul") for b in ("ar", "es", "in", "ot", "um")]


def sentence(seed: int, words: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(WORDS[n] for n in rng.integers(0, len(WORDS), words))


def records() -> list[Record]:
    """Short and long ones, an empty one, and one that is no text."""
    made = [Record(sentence(n, 4 + n % 30).encode(), f"r{n}", {"n": n}) for n in range(150)]
    return [*made, Record(b"", "empty"), Record(b"\xff\xfe\x00" * 50, "binary")]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("refine") / "a.cola"
    Archive.pack(path, records(), codec=CODEC)
    with Archive(path, CODEC) as archive:
        archive.build_index(refine=True)
    return path


@pytest.fixture
def path(packed: Path, tmp_path: Path) -> Path:
    shutil.copy(packed, tmp_path / "a.cola")
    shutil.copytree(folder_of(str(packed)), folder_of(str(tmp_path / "a.cola")))
    return tmp_path / "a.cola"


def by_hand(query: str) -> list[tuple[str, float]]:
    """Records by their best passage under float vectors, best first."""
    best = []
    asked = CODEC.vectors([query])[0]
    for record in records():
        (spans,) = CODEC.passages([record.data])
        passages = [record.data[a:b] for a, b in spans]
        if passages:
            best.append((record.id, float(cosines(CODEC.vectors(passages), asked).max())))
    return sorted(best, key=lambda found: -found[1])


@given(st.integers(0, 2**32), st.integers(0, 40), st.sampled_from([2, 16, 240]), st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_packed_vectors_are_half_a_step_off_at_most(seed: int, count: int, width: int, scale: float) -> None:
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    packed = pack_finer(vectors * np.float32(scale))
    assert packed.shape == (count, width // 2) and packed.dtype == np.uint8
    back = unpack_nibbles(packed).astype(np.float32)
    assert (pack_nibbles(back.astype(np.int8)) == packed).all()
    steps = vectors / np.sqrt((vectors**2).mean(1, keepdims=True)) * (7 / 2.25)
    assert (np.abs(back - np.clip(steps, -7, 7)) < 0.5001).all()


def test_packed_vectors_keep_their_direction() -> None:
    vectors = np.random.default_rng(0).standard_normal((2000, 240)).astype(np.float32)
    back = unpack_nibbles(pack_finer(vectors)).astype(np.float32)
    products = np.einsum("nd,nd->n", vectors, back)
    cosine = products / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(back, axis=1))
    assert cosine.mean() > 0.99 and cosine.min() > 0.98


def test_a_zero_vector_stays_zero() -> None:
    assert not unpack_nibbles(pack_finer(np.zeros((2, 8), np.float32))).any()
    mixed = mix(np.zeros((1, 4), np.float32), np.array([[0, 3, 0, 0]], np.float32))
    assert mixed.tolist() == [[0, 1, 0, 0]]


def test_ranks_by_finer_vectors(path: Path) -> None:
    with Archive(path, CODEC) as archive:
        refined = {q: archive.search(q, 10, "semantic") for q in (sentence(n, 6) for n in range(1000, 1020))}
        passages = archive.search(sentence(1000, 6), 20, group=False)
        hybrid = archive.search(sentence(1000, 6), 10)
    assert len(passages) == 20
    assert [hit.score for hit in passages] == sorted((hit.score for hit in passages), reverse=True)
    folder = folder_of(str(path))
    shutil.rmtree(folder)
    near = stored = 0
    with Archive(path, CODEC) as archive:
        for query, hits in refined.items():
            wanted = by_hand(query)[:10]
            for hit, (_, score) in zip(hits, wanted, strict=True):
                assert abs(hit.score - score) < 0.05
            top = {name for name, _ in wanted}
            near += len(top & {hit.id for hit in hits})
            stored += len(top & {hit.id for hit in archive.search(query, 10, "semantic")})
    assert near > 170 > stored
    exact = dict(by_hand(sentence(1000, 6)))
    for hit in hybrid:
        assert abs(hit.scores["cosine"] - exact[hit.id]) < 0.05


@pytest.mark.parametrize("group", [True, False])
def test_a_filter_still_gives_k(path: Path, group: bool) -> None:
    with Archive(path, CODEC) as archive:
        for k in (1, 3, 40):
            hits = archive.search(sentence(7, 5), k, "semantic", "n < 30", group=group)
            assert len(hits) == min(k, 30 if group else 1000)
            assert all(hit.metadata["n"] < 30 for hit in hits)


def test_asks_for_more_until_k_records_are_among_them() -> None:
    """A record of many near passages does not crowd out the others."""
    rng = np.random.default_rng(3)
    codebook = rng.standard_normal((4, 256, 4)).astype(np.float32)
    codes = np.concatenate([np.tile(codebook_code(rng), (600, 1)), rng.integers(0, 256, (5, 4), np.uint8)])
    owners = np.array([0] * 600 + [1, 2, 3, 4, 5])
    index = SearchIndex(codebook)
    index.add(codes, owners)
    vectors = codebook[np.arange(4), codes].reshape(-1, 16)
    found = RefinedIndex(index, pack_finer(vectors))
    positions, scores = found.search(vectors[0], 6)
    assert sorted(found.owners[positions].tolist()) == [0, 1, 2, 3, 4, 5]
    assert scores[0] > 0.97 and len(found) == 605
    places, best = found.cosines(vectors[0], np.array([0, 3]))
    assert places[0] < 600 and places[1] == 602 and best[0] > best[1]


def codebook_code(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (1, 4), np.uint8)


def test_what_it_is_computed_from(packed: Path, tmp_path: Path) -> None:
    """The text, exact or plain; the gist without it; and nothing where there is neither."""
    query = records()[40].data.decode()
    with Archive(packed, CODEC) as archive:
        archive.strip(["exact"], tmp_path / "gist.cola")
        archive.strip(["gist", "exact"], tmp_path / "search.cola")
        archive.strip(["search"], tmp_path / "text.cola")
        of_text = archive.search(query, 1, "semantic")[0]
    Archive.pack(tmp_path / "plain.cola", records(), codec=CODEC, layers=[SEARCH, PLAIN], preset="fast")
    with Archive(tmp_path / "plain.cola", CODEC) as archive:
        archive.build_index(refine=True)
        hit = archive.search(query, 1, "semantic")[0]
        assert (hit.id, hit.score) == (of_text.id, of_text.score)
    with Archive(tmp_path / "gist.cola", CODEC) as archive:
        assert GIST in archive.layers and not archive.holds_text
        before = archive.search(query, 1)[0].score
        sizes = archive.build_index(refine=True)
        assert sizes["words"] == 0 and sizes["refine"] > 0
        assert archive.search(query, 1)[0].score != before
    for name, layer in (("search", "gist"), ("text", "search")):
        with Archive(tmp_path / f"{name}.cola", CODEC) as archive:
            with pytest.raises(MissingLayerError, match=f"no {layer} layer"):
                archive.build_index(refine=True)
            assert not folder_of(archive.path).exists()


def test_an_embedder_has_no_finer_vectors(tmp_path: Path) -> None:
    embedder = Embedder(CODEC.vectors, "plain")
    Archive.pack(tmp_path / "e.cola", records()[:20], codec=CODEC, embedder=embedder)
    with (
        Archive(tmp_path / "e.cola", CODEC, embedder=embedder) as archive,
        pytest.raises(UsageError, match="code_bytes"),
    ):
        archive.build_index(refine=True)


def test_a_new_index_is_refined_as_the_old_one(path: Path) -> None:
    Archive.pack(path, records()[:50], codec=CODEC, overwrite=True)  # the index is stale now
    with Archive(path, CODEC) as archive:
        assert archive.build_index(overwrite=True)["refine"] > 0
        assert archive.build_index(overwrite=True, refine=False)["refine"] == 0
        assert archive.build_index(overwrite=True)["refine"] == 0
        archive.build_index(overwrite=True, refine=True)
        archive.strip(["search"], path, overwrite=True)
    with Archive(path, CODEC) as archive:  # and not where that can't be
        assert archive.build_index(overwrite=True)["refine"] == 0


def test_beside_the_codes_of_a_large_archive(path: Path) -> None:
    with Archive(path, CODEC) as archive:
        small = archive.search("boar dries fenum", 10, "semantic")
        sizes = build(archive, overwrite=True, scanned_codes=50)
        assert sizes["vectors"] > 0 and sizes["refine"] > 0
    with Archive(path, CODEC) as archive:
        assert archive.search("boar dries fenum", 10, "semantic") == small
        assert archive.info()["index"]["bytes"]["refine"] == sizes["refine"]


def test_an_empty_archive(tmp_path: Path) -> None:
    Archive.pack(tmp_path / "e.cola", [], codec=CODEC)
    with Archive(tmp_path / "e.cola", CODEC) as archive:
        archive.build_index(refine=True)
        assert archive.search("boat", mode="semantic") == []


def test_forged_vectors(path: Path) -> None:
    """A file that agrees with its checksum and is wrong all the same: an error or an answer, no crash."""
    folder = folder_of(str(path))
    description = json.loads((folder / "index.json").read_text())
    whole = (folder / "refine.bin").read_bytes()
    for content in (b"", whole[:-1], whole + b"\0", b"\xff" * len(whole)):
        (folder / "refine.bin").unlink()
        (folder / "refine.bin").write_bytes(content)
        description["files"]["refine.bin"] = [len(content), zlib.crc32(content)]
        (folder / "index.json").write_text(json.dumps(description))
        with Archive(path, CODEC) as archive:
            if len(content) != len(whole):
                with pytest.raises(SearchIndexError, match=r"damaged.*colazip index --rebuild"):
                    archive.search("boat", mode="semantic")
            else:
                assert len(archive.search("boat", 5, mode="semantic")) == 5


@pytest.mark.parametrize("change", [{"refine": -1}, {"refine": "x"}, {"refine": True}, {"files": {}}])
def test_forged_descriptions(path: Path, change: dict) -> None:
    file = folder_of(str(path)) / "index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with Archive(path, CODEC) as archive, pytest.raises(SearchIndexError, match="rebuild"):
        archive.search("boat")


def test_similar_records_by_finer_vectors(path: Path) -> None:
    with Archive(path, CODEC) as archive:
        assert isinstance(archive._index()[0], RefinedIndex)
        for id in ("r3", "r29"):
            hits = archive.similar(id, 5)
            assert id not in {hit.id for hit in hits} and len(hits) == 5
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
