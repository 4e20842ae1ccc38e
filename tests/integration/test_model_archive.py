"""Archives written with a real model: the same bytes however they are made, and whole or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from colazip import Archive, Record, Sampling
from colazip.errors import ColazipError, MissingLayerError, ModelMismatchError
from colazip.layers import GIST, SEARCH
from tests.cli.conftest import process
from tests.plain_codec import PlainCodec
from tests.tiny_model import passages, tiny_codec, tiny_folder


def records(count: int = 30) -> list[Record]:
    """Passages with metadata, bytes that are no text, an empty record, and one of many segments."""
    rows = [Record(t.encode(), f"p/{i}", {"length": len(t)}) for i, t in enumerate(passages()[:count])]
    rows += [Record(bytes(range(256)) * 3, "binary"), Record(b"", "empty")]
    return [*rows, Record((" ".join(passages()[:count]) + "\n").encode(), "all")]


def test_same_archive_bytes_for_any_batch_size_and_thread_count(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    files, rows = [], records(12)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for size in (1, 7, 64):
                path = tmp_path / f"{count}-{size}.cola"
                Archive.pack(path, rows, codec=tiny_codec(size), batch_blocks=size)
                files.append(path.read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert all(f == files[0] for f in files)
    with Archive(tmp_path / "2-7.cola", tiny_codec(64)) as archive:
        assert list(archive) == rows
        archive.verify()


def test_every_detail_from_the_command_line(tmp_path: Path) -> None:
    text, sizes = " ".join(passages()[:6]).encode(), []
    (tmp_path / "text").write_bytes(text)
    model = ("--model", str(tiny_folder()))
    for detail in range(3):
        packed = ("pack", "text", "-o", f"{detail}.cola", "--layers", "gist,exact", "--detail", str(detail))
        assert process(*packed, *model, cwd=tmp_path).returncode == 0
        with Archive(tmp_path / f"{detail}.cola", tiny_codec()) as archive:
            assert archive.get("text") == text
            sizes.append(archive.info()["bytes"]["gist"])
    assert sizes[0] > sizes[1] > sizes[2]
    refused = process("pack", "text", "-o", "3.cola", "--detail", "3", *model, cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count(b"\n") == 1
    assert b"gists of detail 0 to 2" in refused.stderr and not (tmp_path / "3.cola").exists()


def test_a_record_longer_than_a_block(tmp_path: Path) -> None:
    text = (" ".join(passages()) + "\n").encode()
    assert Archive.pack(tmp_path / "a.cola", [text, b"short"], codec=tiny_codec()).parts == 3
    with Archive(tmp_path / "a.cola", tiny_codec()) as archive:
        assert archive.get("0") == text and archive.get("1") == b"short"


def test_everything_the_archive_offers(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    rows = records()
    Archive.pack(path, rows, codec=tiny_codec())
    with Archive(path, tiny_codec()) as archive:
        assert archive.get("p/3") == rows[3].data
        assert archive.gist("binary") == bytes(range(256)).decode("utf-8", "replace") * 3
        hits = archive.search(passages()[7], 5)
        assert "p/7" in [h.id for h in hits] and len(hits) == 5
        assert "binary" not in [h.id for h in archive.search("anything at all", 50)]
        assert archive.regenerate("p/2", strength=0.0) == archive.gist("p/2")
        assert isinstance(archive.regenerate("p/2", strength=1.0, options=Sampling(2)), str)
        archive.strip(["exact"], tmp_path / "b.cola")
    with Archive(tmp_path / "b.cola", tiny_codec()) as small:
        assert small.layers == (SEARCH, GIST)
        with pytest.raises(MissingLayerError):
            small.get("p/3")
        with Archive(path, tiny_codec()) as archive:
            assert list(small.gists()) == list(archive.gists())


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    Archive.pack(path, records()[:3], codec=tiny_codec())
    with pytest.raises(ModelMismatchError):
        Archive(path, PlainCodec())


def test_damage_anywhere_is_an_error_and_never_other_text(tmp_path: Path) -> None:
    path, broken = tmp_path / "a.cola", tmp_path / "b.cola"
    rows = records()[:12]
    Archive.pack(path, rows, codec=tiny_codec())
    whole = path.read_bytes()
    rng = random.Random(1)
    for _ in range(60):
        data = bytearray(whole)
        at = rng.randrange(len(data))
        if rng.random() < 0.3:
            del data[at:]
        else:
            data[at] ^= 1 << rng.randrange(8)
        broken.write_bytes(data)
        with pytest.raises(ColazipError), Archive(broken, tiny_codec()) as archive:
            archive.verify()


def ask(archive: Archive, job: int) -> Any:
    id = str(job * 37 % len(archive))
    kinds: list[Callable[[], Any]] = [
        lambda: archive.get(id),
        lambda: archive.gist(id),
        lambda: [hit.id for hit in archive.search(f"how {job}", k=3, snippets=job % 2 > 0)],
        lambda: [record.id for record in archive.records(job, job + 3)],
    ]
    return kinds[job % 4]()


def test_threads_that_share_archives_and_a_codec(tmp_path: Path) -> None:
    codec = tiny_codec()
    texts = [f"{i}: {text}" for i in range(2) for text in passages()]
    paths = [tmp_path / f"{number}.cola" for number in range(2)]
    for number, path in enumerate(paths):
        Archive.pack(path, texts[number::2], codec=codec)
    jobs = [(which, job) for job in range(12) for which in range(2)]
    alone = [Archive(path, codec) for path in paths]
    wanted = [ask(alone[which], job) for which, job in jobs]
    shared = [Archive(path, codec) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda item: ask(shared[item[0]], item[1]), jobs)) == wanted
