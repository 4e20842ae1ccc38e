"""Words, filters and the index beside an archive, where records have passages, embedders, or format 1."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from colazip.archive import Archive, Record
from colazip.archive.sidecar import build
from colazip.errors import UsageError
from colazip.layers import BLOCK_BYTES
from colazip.search import brute_force
from tests.plain_codec import PlainCodec
from tests.unit.test_embedder import words

CODEC = PlainCodec(passage_bytes=400)
MODES = ("semantic", "lexical", "hybrid")
QUERY = "the lighthouse keeper trims the wick"
V1 = Path(__file__).parent.parent / "golden" / "archive-v1.cola"


def story(at: int, count: int = 4000) -> bytes:
    """Filler, and one sentence that tells of a lighthouse."""
    sentences = [f"Filler sentence number {i} is about nothing." for i in range(count)]
    sentences[at] = "The lighthouse keeper trims the wick. " * 8
    return " ".join(sentences).encode()


RECORDS = [
    Record(b"the keeper of bees", "bees", {"year": 2019}),
    Record(story(3500), "late", {"year": 2020}),
    Record(story(10), "early", {"year": 2021}),
    *(Record(f"A note about number {n} and the wick.".encode(), None, {"year": n}) for n in range(30)),
]


@pytest.fixture(scope="module", params=["model", "embedder"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("together") / "a.cola"
    embedder = words if request.param == "embedder" else None
    Archive.pack(path, RECORDS, codec=CODEC, embedder=embedder)
    with Archive(path, CODEC, embedder=embedder) as opened:
        opened.build_index()
        yield opened


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("id", ["late", "early"])
def test_hits_name_their_passage_in_every_mode(archive: Archive, mode: str, id: str) -> None:
    text = archive.get(id)
    assert len(text) > 2 * BLOCK_BYTES
    (hit,) = archive.search(QUERY, 1, mode, f"id = '{id}'")
    assert hit.span is not None and text[slice(*hit.span)].decode() == hit.text
    assert "lighthouse keeper" in hit.text and len(hit.text) <= 400 and hit.snippet in hit.text
    assert text.find(b"The lighthouse") < hit.span[1] and text.rfind(b"wick.") > hit.span[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_counts_records_not_passages(archive: Archive, mode: str) -> None:
    hits = archive.search("the keeper and the wick about nothing", 3, mode, "year >= 2019")
    assert {hit.id for hit in hits} == {"bees", "late", "early"}
    each = archive.search("filler sentence", 40, where="year >= 2020", group=False)
    assert {hit.id for hit in each} == {"late", "early"} and len({(hit.id, hit.span) for hit in each}) == 40


def test_the_index_of_codes_knows_whose_passages_they_are(archive: Archive) -> None:
    def found() -> list:
        return [
            archive.search(QUERY, k, mode, where, group=group)
            for k in (1, 20)
            for where in (None, "year >= 2019")
            for mode, group in (("semantic", True), ("semantic", False), ("hybrid", True))
        ]

    scanned = found()
    codes = [batch for _, _, batch in archive._codes()]
    assert sum(map(len, codes)) > len(RECORDS)
    build(archive, overwrite=True, scanned_codes=50)
    archive._index_files = archive._search_index = None
    assert found() == scanned
    assert type(archive._index()[0]).__name__ == "LargeIndex"
    codec = archive._search_codec()
    owners = np.concatenate([batch for _, batch, _ in archive._codes()])
    places, _ = brute_force(codec.codebook, np.concatenate(codes), owners, codec.vectors([QUERY])[0], 5)
    names = list(archive.ids())
    assert [hit.id for hit in archive.search(QUERY, 5, "semantic")] == [names[owners[at]] for at in places]


def test_words_need_no_embedder(tmp_path: Path) -> None:
    Archive.pack(tmp_path / "a.cola", RECORDS, codec=CODEC, embedder=words)
    with Archive(tmp_path / "a.cola", CODEC) as archive:
        with pytest.raises(UsageError, match="embedder"):
            archive.search(QUERY)
        archive.build_index()
        assert archive.search(QUERY, 2) == archive.search(QUERY, 2, "lexical")
        for mode in ("semantic", "hybrid"):
            with pytest.raises(UsageError, match="embedder"):
                archive.search(QUERY, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_format_1(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "v1.cola"
    shutil.copy(V1, path)
    with Archive(path, PlainCodec("golden")) as archive:
        archive.build_index()
        hit = archive.search("the first record of the first format", 1, mode)[0]
        assert (hit.id, hit.span) == ("first", (0, 37))
        (long,) = archive.search("a long record", 1, mode, "n = 4")
        assert long.id == "long" and long.text.startswith("a long record")
        assert len(archive.search("number", 99, mode, "day = 'sunday'")) == 7
