"""The index beside an archive: modes, filters, binding, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from colazip.archive import Archive, Record
from colazip.archive.sidecar import build, folder_of
from colazip.errors import MissingLayerError, SearchIndexError, UsageError
from colazip.layers import BLOCK_BYTES, PLAIN, SEARCH
from colazip.search import brute_force
from tests.plain_codec import PlainCodec

CODEC = PlainCodec()
SUBJECTS = ["boat", "bread", "cat", "dog", "engine", "flower", "garden"]


def records(count: int = 200) -> list[Record]:
    return [
        Record(
            f"The {SUBJECTS[n % 7]} number {n} is on the {SUBJECTS[n // 7 % 7]}.".encode(),
            f"r{n}",
            {"n": n, "lang": "en" if n % 3 else "de", "mixed": n if n % 2 else "x"},
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sidecar") / "a.cola"
    Archive.pack(path, records(), codec=CODEC)
    with Archive(path, CODEC) as archive:
        archive.build_index()
    return path


@pytest.fixture
def path(packed: Path, tmp_path: Path) -> Path:
    """A copy of an archive and its index."""
    shutil.copy(packed, tmp_path / "a.cola")
    shutil.copytree(folder_of(str(packed)), folder_of(str(tmp_path / "a.cola")))
    return tmp_path / "a.cola"


def ids(archive: Archive, *arguments: object, **options: object) -> list[str]:
    return [hit.id for hit in archive.search(*arguments, **options)]  # type: ignore[arg-type]


def test_modes(path: Path) -> None:
    with Archive(path, CODEC) as archive:
        lexical = archive.search("engine number 39", 5, "lexical")
        assert lexical[0].id == "r39" and lexical[0].scores == {"bm25": lexical[0].score}
        assert "engine" in lexical[0].snippet
        semantic = archive.search("the engine number 39 is on the", 5, "semantic")
        assert semantic[0].scores == {"cosine": semantic[0].score}
        hybrid = archive.search("engine number 39", 5)
        assert hybrid[0].id == "r39" and set(hybrid[0].scores) == {"bm25", "cosine"}
        assert all(0 <= hit.score <= 1 for hit in hybrid)
        assert ids(archive, "engine number 39", 5) == ids(archive, "engine number 39", 5, "hybrid")
        assert ids(archive, "submarine", 5, "lexical") == []
        assert len(archive.search("submarine", 5)) == 5  # meaning alone
        assert archive.search("boat", 3, snippets=False)[0].snippet == ""
        with pytest.raises(UsageError, match="semantic, lexical, hybrid"):
            archive.search("boat", 5, "words")


def test_without_an_index(path: Path) -> None:
    shutil.rmtree(folder_of(str(path)))
    with Archive(path, CODEC) as archive:
        assert archive.search("boat", 3)[0].scores.keys() == {"cosine"}
        assert archive.info()["index"] is None
        for mode in ("lexical", "hybrid"):
            with pytest.raises(SearchIndexError, match="colazip index"):
                archive.search("boat", 3, mode)


@pytest.mark.parametrize("mode", ["semantic", "lexical", "hybrid"])
@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ("n >= 100 and lang = 'de'", lambda n: n >= 100 and n % 3 == 0),
        ("n in (3, 5, 199)", lambda n: n in (3, 5, 199)),
        ("id = 'r7' or id like 'r19_'", lambda n: n == 7 or n >= 190),
        ("n < 0", lambda n: False),
    ],
)
def test_filters_give_k_where_k_exist(path: Path, mode: str, where: str, passes) -> None:
    wanted = {f"r{n}" for n in range(200) if passes(n)}
    with Archive(path, CODEC) as archive:
        for k in (2, 150):
            found = ids(archive, "the number is", k, mode, where)
            assert len(found) == min(k, len(wanted)) and set(found) <= wanted


def test_wrong_filters(path: Path) -> None:
    with Archive(path, CODEC) as archive:
        for where, message in (
            ("year > 1", "'year'; the archive has lang, mixed, n"),
            ("n = 'x'", "holds numbers"),
            ("mixed = 1", "several types"),
            ("n >", "expected a value"),
        ):
            with pytest.raises(UsageError, match=message):
                archive.search("boat", where=where)


def test_filters_over_groups_that_differ(tmp_path: Path) -> None:
    """A column may be missing in a group, or be of another number type; JSON columns count where flat."""
    filler = "word " + "x" * 15_000 + " "
    late = [{"b": n / 2, "a": None, "c": {"d": [n]}} for n in range(600)]
    items = [Record(f"{filler}{n}".encode(), None, {"a": n} if n < 300 else late[n]) for n in range(600)]
    items += [Record(b"last", metadata={"a": 1.5}), Record(b"very last", metadata={"a": 2})]
    Archive.pack(tmp_path / "g.cola", items, codec=CODEC, layers=[SEARCH, "gist", "exact"])
    with Archive(tmp_path / "g.cola", CODEC) as archive:
        assert len(archive.manifest.groups) > 1
        assert sorted(ids(archive, "word", 1000, where="a < 3"), key=int) == ["0", "1", "2", "600", "601"]
        assert ids(archive, "word", 1000, where="b = 299.5") == ["599"]
        with pytest.raises(UsageError, match="'c'"):
            archive.search("word", where="c = 1")


def test_many_keys_are_one_column(tmp_path: Path) -> None:
    items = [Record(b"text %d" % n, metadata={f"k{n}": n, "all": n}) for n in range(300)]
    Archive.pack(tmp_path / "k.cola", items, codec=CODEC)
    with Archive(tmp_path / "k.cola", CODEC) as archive:
        assert ids(archive, "text", where="k7 = 7") == ["7"]
        assert sorted(ids(archive, "text", where="all >= 298")) == ["298", "299"]
        with pytest.raises(UsageError, match="'k300'"):
            archive.search("text", where="k300 = 1")


def test_long_records_rank_by_their_best_part(tmp_path: Path) -> None:
    long = b"filler " * (BLOCK_BYTES // 7) + b"submarine under the ice. " * 40
    Archive.pack(tmp_path / "l.cola", [b"submarine", long, b"bread"], codec=CODEC)
    with Archive(tmp_path / "l.cola", CODEC) as archive:
        archive.build_index()
        assert set(ids(archive, "submarine ice", 5, "lexical")) == {"0", "1"}
        assert len(ids(archive, "submarine ice", 5)) == 3


def test_a_stale_index_is_refused(path: Path) -> None:
    Archive.pack(path, records(10), codec=CODEC, overwrite=True)
    with Archive(path, CODEC) as archive:
        for mode in (None, "lexical", "hybrid"):
            with pytest.raises(SearchIndexError, match=r"stale.*colazip index --rebuild"):
                archive.search("boat", mode=mode)
        assert len(archive.search("boat", mode="semantic")) == 10
        assert archive.info()["index"] == {"state": "stale"}
        with pytest.raises(UsageError, match="--rebuild"):
            archive.build_index()
        archive.build_index(overwrite=True)
        assert archive.info()["index"]["state"] == "current"
        assert len(archive.search("the number", 20)) == 10


def test_info_counts_the_index(path: Path) -> None:
    with Archive(path, CODEC) as archive:
        facts = archive.info()["index"]
    files = [file for file in folder_of(str(path)).rglob("*") if file.is_file()]
    assert facts["file_bytes"] == sum(file.stat().st_size for file in files) == sum(facts["bytes"].values())


def test_every_damaged_file_is_noticed(path: Path) -> None:
    for file in [file for file in folder_of(str(path)).rglob("*") if file.is_file()]:
        whole = file.read_bytes()
        changed = whole[:-1] + bytes([whole[-1] ^ 1]) if file.name != "index.json" else whole[:-10]
        for content in (whole[: len(whole) // 2], changed):
            file.unlink()  # another file, not this one: it may still be in memory
            file.write_bytes(content)
            with Archive(path, CODEC) as archive:
                with pytest.raises(SearchIndexError, match=r"damaged.*colazip index --rebuild"):
                    archive.search("boat")
                assert archive.info()["index"] == {"state": "damaged"}
        file.unlink()
        file.write_bytes(whole)
    with Archive(path, CODEC) as archive:
        assert archive.search("boat")


@pytest.mark.parametrize(
    "change",
    [
        {"files": []},
        {"files": {"../../etc/passwd": [0, 0]}},
        {"files": {"/etc/passwd": [0, 0]}},
        {"files": {"words/x": ["1", 0]}},
        {"codes": 5},
        {"codes": -1, "subspaces": 2},
        {"codes": 1 << 62, "subspaces": 2},
        {"codes": 100, "subspaces": 2},
        {"archive": 7},
        {"format": 99},
        {"words": 99},
    ],
)
def test_forged_descriptions(path: Path, change: dict) -> None:
    file = folder_of(str(path)) / "index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with Archive(path, CODEC) as archive, pytest.raises(SearchIndexError, match="rebuild"):
        archive.search("boat")


def test_vectors_of_a_large_archive(path: Path) -> None:
    with Archive(path, CODEC) as archive:
        scanned = archive.search("the dog number 3", 20, "semantic")
        sizes = build(archive, overwrite=True, scanned_codes=50)
        assert sizes["vectors"] > 200 * len(CODEC.codebook)
    with Archive(path, CODEC) as archive:
        assert archive.search("the dog number 3", 20, "semantic") == scanned
        assert len(archive.search("the dog number 3", 20)) == 20
        codes = np.concatenate([codes for _, _, codes in archive._codes()])
        expected, _ = brute_force(CODEC.codebook, codes, np.arange(200), CODEC.vectors(["cat"])[0], 5)
        assert ids(archive, "cat", 5, "semantic") == [f"r{n}" for n in expected]


@pytest.mark.parametrize("name", ["codes.bin", "owners.bin", "parts.bin", "centroids.bin", "coarse.bin"])
def test_forged_vectors(path: Path, name: str) -> None:
    """Files that agree with their checksums and are wrong all the same: an error or an answer, no crash."""
    with Archive(path, CODEC) as archive:
        build(archive, overwrite=True, scanned_codes=50)
    folder = folder_of(str(path))
    description = json.loads((folder / "index.json").read_text())
    for content in (b"", b"\xff" * 7, b"\xff" * (folder / name).stat().st_size):
        import zlib

        (folder / name).unlink()
        (folder / name).write_bytes(content)
        description["files"][name] = [len(content), zlib.crc32(content)]
        (folder / "index.json").write_text(json.dumps(description))
        with Archive(path, CODEC) as archive:
            if name in ("owners.bin", "parts.bin") or len(content) < 10:
                with pytest.raises(SearchIndexError, match="damaged"):
                    archive.search("boat", mode="semantic")
            else:
                archive.search("boat", mode="semantic")


def test_what_an_archive_has_decides_what_is_indexed(tmp_path: Path, packed: Path) -> None:
    with Archive(packed, CODEC) as archive:
        archive.strip(["search"], tmp_path / "t.cola")
        archive.strip(["exact"], tmp_path / "g.cola")
    with Archive(tmp_path / "t.cola", CODEC) as archive:
        archive.build_index()
        assert archive.search("engine number 39", 1)[0].id == "r39"
        with pytest.raises(MissingLayerError, match="search"):
            archive.search("engine", mode="hybrid")
    with Archive(tmp_path / "g.cola", CODEC) as archive:
        with pytest.raises(MissingLayerError, match="no text to index"):
            archive.build_index()
        assert not folder_of(archive.path).exists()
        build(archive, scanned_codes=50)
        assert archive.search("boat", 3)[0].scores.keys() == {"cosine"}
        with pytest.raises(SearchIndexError, match="no index of its words"):
            archive.search("boat", mode="lexical")
    Archive.pack(tmp_path / "p.cola", records(20), codec=CODEC, layers=[SEARCH, PLAIN], preset="fast")
    with Archive(tmp_path / "p.cola", CODEC) as archive:
        archive.build_index()
        assert archive.search("bread number 8", 1)[0].id == "r8"


def test_only_an_index_is_replaced(path: Path) -> None:
    folder = folder_of(str(path))
    (folder / "mine.txt").write_text("kept")
    with Archive(path, CODEC) as archive:
        with pytest.raises(UsageError, match=r"mine\.txt: is no part of an index"):
            archive.build_index(overwrite=True)
        assert (folder / "mine.txt").read_text() == "kept"
        (folder / "mine.txt").unlink()
        (folder / "index.json").unlink()  # what is left of an index may go
        archive.build_index(overwrite=True)
        assert archive.search("bread", mode="lexical") is not None


def test_a_failed_build_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(records: int, text_bytes: int) -> None:
        raise KeyboardInterrupt

    before = (folder_of(str(path)) / "index.json").read_bytes()
    with Archive(path, CODEC) as archive, pytest.raises(KeyboardInterrupt):
        archive.build_index(overwrite=True, progress=stop)
    assert (folder_of(str(path)) / "index.json").read_bytes() == before
    assert {entry.name for entry in path.parent.iterdir()} == {"a.cola", "a.cola.index"}


def test_an_empty_archive(tmp_path: Path) -> None:
    Archive.pack(tmp_path / "e.cola", [], codec=CODEC)
    with Archive(tmp_path / "e.cola", CODEC) as archive:
        archive.build_index()
        assert archive.search("anything") == []


def test_passages_are_told_apart_by_meaning(path: Path) -> None:
    with Archive(path, CODEC) as archive:
        assert len(archive.search("the engine", 5, group=False)) == 5
        hit = archive.search("engine number 39", 1, group=False)[0]
        assert set(hit.scores) == {"cosine"}  # by default, too, though there is an index of words
        assert archive.search("engine", 5, where="n < 3", group=False)
        with pytest.raises(UsageError, match="mode semantic"):
            archive.search("engine", mode="hybrid", group=False)


def test_a_hit_by_words_has_its_span(path: Path) -> None:
    with Archive(path, CODEC) as archive:
        for mode in ("lexical", "hybrid"):
            hit = archive.search("engine number 39", 1, mode)[0]
            assert hit.span == (0, len(hit.text)) and hit.text.encode() == archive.get(hit.id)
