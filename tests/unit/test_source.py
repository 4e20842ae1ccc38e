"""Archives at URLs: what fsspec reads, from memory and from a real web server on loopback."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import colazip
from benchmarks.remote import measure, parquet_of
from benchmarks.web_server import Site, serve
from colazip.archive import Archive, Record
from colazip.archive.source import LocalFile
from colazip.cli.main import main
from colazip.errors import FormatError, InputError, UsageError
from colazip.layers import GIST
from colazip.remote import ReadAhead, is_url
from tests.plain_codec import PlainCodec

CODEC = PlainCodec()


@pytest.fixture
def site() -> Iterator[Site]:
    pytest.importorskip("aiohttp")
    with serve() as site:
        yield site


@pytest.fixture
def archive_file(tmp_path: Path) -> Path:
    """Half a megabyte: its records don't compress well."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(20_000)]
    records = [Record(" ".join(draw.choices(words, k=40)).encode(), f"id-{i}", {"n": i}) for i in range(3000)]
    Archive.pack(tmp_path / "a.cola", records, codec=CODEC)
    return tmp_path / "a.cola"


def test_an_archive_on_a_web_server(site: Site, archive_file: Path) -> None:
    site.files["/a.cola"] = archive_file.read_bytes()
    size = len(site.files["/a.cola"])
    assert size > 400_000
    with Archive(archive_file, CODEC) as here, Archive(f"{site.address}/a.cola", CODEC) as there:
        assert (len(there), there.layers, there.manifest) == (len(here), here.layers, here.manifest)
        opened = site.sent
        assert there.get("id-1234") == here.get("id-1234")
        assert site.sent < size / 3
        assert site.requests < 12 and opened < 100_000
        assert [hit.id for hit in there.search("abc", k=3)] == [hit.id for hit in here.search("abc", k=3)]
        assert [r.data for r in there.records(100, 130, layer=GIST)] == [
            r.data for r in here.records(100, 130, layer=GIST)
        ]
        assert site.sent < size
        assert list(there) == list(here)
        there.verify()


def test_reading_on_takes_few_requests(site: Site, archive_file: Path) -> None:
    site.files["/a.cola"] = archive_file.read_bytes()
    with Archive(f"{site.address}/a.cola", CODEC) as archive:
        assert sum(1 for _ in archive) == 3000
    assert site.requests < 30
    assert site.sent < 1.5 * len(site.files["/a.cola"])


def test_threads_share_an_archive_at_a_url(site: Site, archive_file: Path) -> None:
    site.files["/a.cola"] = archive_file.read_bytes()
    with Archive(f"{site.address}/a.cola", CODEC) as archive, ThreadPoolExecutor(4) as pool:
        read = archive._store.read
        data = site.files["/a.cola"]
        places = [(i * 4099 % (len(data) - 5000), i * 37 % 5000) for i in range(200)]
        assert list(pool.map(lambda place: read(*place), places)) == [data[o : o + n] for o, n in places]


def test_what_a_server_can_say(site: Site, archive_file: Path) -> None:
    with pytest.raises(InputError, match=r"127.0.0.1:\d+/none.cola: can't be read: no such file"):
        Archive(f"{site.address}/none.cola")
    site.files["/a.cola"] = archive_file.read_bytes()
    site.ranges = False
    with pytest.raises(InputError, match="doesn't give parts of a file; download it first"):
        Archive(f"{site.address}/a.cola")
    site.ranges = True
    archive = Archive(f"{site.address}/a.cola", CODEC)
    site.files["/a.cola"] = site.files["/a.cola"][:300_000]  # it is another file now
    with pytest.raises((FormatError, InputError), match=r"/a\.cola: (truncated|damaged|can't be read)"):
        archive.verify()
    del site.files["/a.cola"]
    with pytest.raises(InputError, match="no such file"):
        list(archive)
    archive.close()
    with pytest.raises(InputError, match="it was closed"):
        archive._store.read(200_000, 10)


def test_a_server_that_is_not_there() -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:1/a\.cola: can't be read: .*onnect"):
        Archive("http://127.0.0.1:1/a.cola")
    with pytest.raises(InputError, match=r"nonsense://x: can't be read: .*nonsense"):
        Archive("nonsense://x")


def test_without_the_package_of_a_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"aiohttp.*; pip install 'colazip\[http\]'$"):
        Archive("https://host.invalid/a.cola")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"s3://box/a\.cola: can't be read: .*s3fs"):
        Archive("s3://box/a.cola")


def test_other_file_systems(archive_file: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/box/a.cola", archive_file.read_bytes())
    for url in ("memory://box/a.cola", f"file://{archive_file}", "dir::memory://box/a.cola"):
        if url.startswith("dir"):
            with pytest.raises(InputError):
                Archive(url)
            continue
        with colazip.open(url, CODEC) as archive:
            assert archive.get("id-7") == Archive(archive_file, CODEC).get("id-7")
            with pytest.raises(UsageError, match="an index lies beside its archive; download it"):
                archive.build_index()
            archive.strip(["exact"], tmp_path / "small.cola", overwrite=True)
    Archive.merge(tmp_path / "again.cola", ["memory://box/a.cola"])
    assert list(Archive(tmp_path / "again.cola", CODEC)) == list(Archive(archive_file, CODEC))
    with colazip.open(f"file://{archive_file}", CODEC, storage_options={"auto_mkdir": False}) as archive:
        assert len(archive) == 3000
    with pytest.raises(UsageError, match="storage_options are for a URL"):
        colazip.open(archive_file, CODEC, storage_options={"anon": True})
    memory.pipe("/box/a.cola", b"not an archive")
    with pytest.raises(FormatError, match=r"memory://box/a\.cola: "):
        Archive("memory://box/a.cola")


def test_codes_are_read_without_the_text_beside_them(site: Site, tmp_path: Path) -> None:
    draw = random.Random(2)
    texts = ["".join(draw.choices("abcdefghijklmnop ", k=600)) for _ in range(3000)]
    Archive.pack(tmp_path / "a.cola", texts, codec=CODEC, preset="fast")
    site.files["/a.cola"] = (tmp_path / "a.cola").read_bytes()
    with Archive(f"{site.address}/a.cola", CODEC) as archive:
        archive.search("7919", k=3, snippets=False)
        sections = [section for group in archive.manifest.groups for section in group.sections.values()]
        codes = sum(section.length for section in sections if section.kind == "search")
    assert site.sent < codes + 150_000 < len(site.files["/a.cola"]) / 2
    site.sent = 0
    with Archive(f"{site.address}/a.cola", CODEC) as archive:
        next(archive.vectors(1000, 1010))
    assert site.sent < 150_000


def test_what_reads_archives_takes_urls(site: Site, archive_file: Path) -> None:
    site.files["/a.cola"] = archive_file.read_bytes()
    url = f"{site.address}/a.cola"
    from colazip.transport.server import ArchiveServer

    with ArchiveServer({"a": url}, codec=CODEC) as server, Archive(f"{server.location}/a", CODEC) as there:
        assert there.get("id-7") == Archive(archive_file, CODEC).get("id-7")
    pytest.importorskip("datasets", reason="not installed: pip install 'colazip[datasets]'")
    from colazip.integrations.datasets import load_archive

    stream = load_archive(url, ["n"], streaming=True)
    assert [row["n"] for row in stream] == list(range(3000))


def test_commands_read_archives_at_urls(
    site: Site, archive_file: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    site.files["/a.cola"] = archive_file.read_bytes()
    url = f"{site.address}/a.cola"

    def said(*arguments: str) -> str:
        capfdbinary.readouterr()
        assert main(list(arguments), CODEC) == 0
        return capfdbinary.readouterr().out.decode()

    for name, *rest in (
        ("get", "id-5"),
        ("list",),
        ("search", "abc", "-k", "3", "--json"),
        ("unpack", "-o", "-"),
    ):
        assert said(name, url, *rest) == said(name, str(archive_file), *rest)
    said("info", url)
    said("verify", url)
    before = site.sent
    said("strip", url, "--drop", "exact", "-o", str(tmp_path / "gist.cola"))
    small = (tmp_path / "gist.cola").stat().st_size
    assert site.sent - before < small + 200_000 < archive_file.stat().st_size
    assert main(["index", url], CODEC) == 2
    assert b"lies beside its archive" in capfdbinary.readouterr().err


def test_packing_what_lies_elsewhere(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = pa.table({"text": [f"row {i} of the table" for i in range(5000)], "n": range(5000)})
    pq.write_table(table, "t.parquet", row_group_size=500)
    rows = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    site.files = {"/t.parquet": Path("t.parquet").read_bytes(), "/t.jsonl": rows.encode(), "/a.txt": b"text"}
    for name in ("t.parquet", "t.jsonl"):
        assert main(["pack", f"{site.address}/{name}", "-o", f"{name}.cola", "-q"], CODEC) == 0
        with Archive(f"{name}.cola", CODEC) as archive:
            assert archive.source["name"] == name
            assert archive.to_arrow(["text", "n"]).read_all().equals(table)
    for name in ("t.parquet", "t.jsonl"):  # what is signed with a secret
        url = f"{site.address}/{name}?signature=SECRET&x=1"
        assert main(["pack", url, "-o", f"{name}.cola", "-f", "-q"], CODEC) == 0
        with Archive(f"{name}.cola", CODEC) as archive:
            assert (archive.source["name"], len(archive)) == (name, 5000)
        assert b"SECRET" not in Path(f"{name}.cola").read_bytes()
    assert main(["pack", f"{site.address}/a.txt?SECRET", "-o", "x.cola", "-q"], CODEC) == 0
    assert list(Archive("x.cola", CODEC).ids()) == ["a.txt"]
    Path("x.cola").unlink()
    both = [f"{site.address}/a.txt", f"{site.address}/t.jsonl"]
    assert main(["pack", *both, "--format", "text", "-o", "files.cola", "-q"], CODEC) == 0
    with Archive("files.cola", CODEC) as archive:
        assert [(record.id, record.data) for record in archive] == [
            ("a.txt", b"text"),
            ("t.jsonl", rows.encode()),
        ]
    assert main(["pack", "t.jsonl.cola", "-o", "memory://box/x.cola", "-q"], CODEC) == 2
    with pytest.raises(UsageError, match="only files here are written"):
        Archive.pack("memory://box/x.cola", ["text"], codec=CODEC)
    folder = [f"{site.address}/a.txt", f"{site.address}/more/"]
    assert main(["pack", *folder, "--format", "text", "-o", "x.cola", "-q"], CODEC) == 1
    del site.files["/a.txt"]
    assert main(["pack", f"{site.address}/a.txt", "-o", "x.cola", "-q"], CODEC) == 1
    assert not Path("x.cola").exists()


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("https://host/a.cola", True),
        ("simplecache::s3://bucket/a.cola", True),
        ("a.cola", False),
        ("./x://y", False),
        ("C:\\data\\a.cola", False),
        ("a:b.cola", False),
    ],
)
def test_what_is_a_url(path: str, url: bool) -> None:
    assert is_url(path) is url


@given(
    st.integers(0, 300_000), st.lists(st.tuples(st.integers(0, 310_000), st.integers(0, 70_000)), max_size=30)
)
@settings(max_examples=100, deadline=None)
def test_any_ranges(size: int, places: list[tuple[int, int]]) -> None:
    data = bytes(i * i % 251 for i in range(300_000))[:size]
    fetched = 0

    def fetch(first: int, stop: int) -> bytes:
        nonlocal fetched
        assert 0 <= first < stop <= size
        fetched += stop - first
        return data[first:stop]

    reads = ReadAhead(size, fetch)
    for offset, length in places:
        assert reads.read(offset, length) == data[offset : offset + length]
    assert fetched <= sum(max(3 * length, 16 << 10) + (128 << 10) for _, length in places)


def test_layers_that_lie_side_by_side_are_fetched_once() -> None:
    fetched = 0

    def fetch(first: int, stop: int) -> bytes:
        nonlocal fetched
        fetched += stop - first
        return bytes(stop - first)

    groups = [range(at, at + 3_000_000) for at in range(0, 12_000_000, 3_000_000)]
    reads = ReadAhead(13_000_000, fetch)
    for group in groups:
        one, other = range(group.start, group.start + 2_000_000), range(group.start + 2_000_000, group.stop)
        for piece in range(40):
            reads.read(one.start + 50_000 * piece, 50_000, one)
            reads.read(other.start + 25_000 * piece, 25_000, other)
    assert fetched == 12_000_000
    fetched = 0
    reads.read(
        groups[0].start + 700_000, 50_000, groups[0]
    )  # in the middle of something: no more than it takes
    assert fetched == 50_000


def test_a_file_that_ends_early() -> None:
    reads = ReadAhead(1_000_000, lambda first, stop: bytes(max(0, min(stop, 50_000) - first)))
    assert len(reads.read(40_000, 30_000)) == 10_000
    assert reads.read(60_000, 10) == b""
    assert len(reads.read(0, 100_000)) <= 50_000


def test_a_file_here(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    file = LocalFile(str(tmp_path / "x"))
    assert (file.size, file.read(3, 4), file.read(8, 9)) == (10, b"3456", b"89")
    file.close()
    with pytest.raises(InputError, match="the archive was closed"):
        file.read(0, 1)


def test_the_benchmark_of_what_is_sent(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    texts = [f"text number {i}" for i in range(1200)]
    Archive.pack(tmp_path / "a.cola", texts, codec=CODEC)
    with serve() as site:
        site.files = {"/a.cola": (tmp_path / "a.cola").read_bytes(), "/a.parquet": parquet_of(texts)}
        rows = list(measure(site, texts, CODEC, "number 7"))  # type: ignore[arg-type]
    assert [which for _, which, _, _ in rows].count("Parquet") == 4
    assert all(count > 0 and requests > 0 for _, _, count, requests in rows)
