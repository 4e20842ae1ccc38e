"""Some of an archive's records into another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colazip.archive import Archive, Record
from colazip.embedder import Embedder
from colazip.errors import MissingLayerError, RecordNotFoundError, UsageError
from colazip.layers import EXACT, GIST, SEARCH, Block
from colazip.presets import BALANCED
from tests.plain_codec import PlainCodec

CODEC = PlainCodec()


class CountingCodec(PlainCodec):
    """Counts what it codes."""

    coded = decoded = 0

    def encode_blocks(self, blocks: Sequence[Sequence[bytes]], *rest: Any) -> list[Block]:
        self.coded += len(blocks)
        return super().encode_blocks(blocks, *rest)

    def decode_blocks(self, blocks: Sequence[Block]) -> list[list[bytes]]:
        self.decoded += len(blocks)
        return super().decode_blocks(blocks)


def many(count: int, size: int) -> list[Record]:
    return [Record((f"record {i} " * size)[:size].encode(), f"id-{i}", {"n": i}) for i in range(count)]


@given(
    st.lists(st.tuples(st.integers(0, 90_000), st.booleans()), max_size=25),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["named", "numbered", "some"]),
    st.sampled_from([None, BALANCED]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_selection(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: list[tuple[int, bool]],
    drop: bool,
    by_ids: bool,
    naming: str,
    preset: str | None,
) -> None:
    monkeypatch.setattr("colazip.archive.writer.GROUP_BLOCKS", 3)
    records = [
        Record(
            (f"record {i} " * size)[:size].encode(),
            f"id-{i}" if naming == "named" or (naming == "some" and i % 3 == 0) else str(i),
            {"n": i, "taken": int(take)},
        )
        for i, (size, take) in enumerate(wanted)
    ]
    path, out = tmp_path / "a.cola", tmp_path / "b.cola"
    options = {} if preset is None else {"preset": preset}
    Archive.pack(path, records, codec=CODEC, overwrite=True, source={"name": "x"}, **options)
    chosen = [record for record, (_, take) in zip(records, wanted, strict=True) if take != drop]
    how: dict[str, Any] = {"where": "taken = 1"}
    if by_ids or not records:
        how = {"ids": [str(r.id) for r, (_, take) in zip(records, wanted, strict=True) if take]}
    with Archive(path, CODEC) as archive:
        summary = archive.select(out, drop=drop, overwrite=True, **how)
    with Archive(out, CODEC) as selected:
        assert list(selected) == chosen
        assert (summary.records, summary.file_bytes) == (len(chosen), out.stat().st_size)
        assert selected.manifest.text_bytes == sum(len(record.data) for record in chosen)
        assert selected.source == {"name": "x"}
        selected.verify()
        for record in chosen[:3]:
            assert selected.get(str(record.id)) == record.data
        fresh = tmp_path / "fresh.cola"
        Archive.pack(fresh, chosen, codec=CODEC, overwrite=True, **options)
        with Archive(fresh, CODEC) as packed:
            found = [(hit.id, hit.score) for hit in selected.search("record 3", k=30)]
            assert found == [(hit.id, hit.score) for hit in packed.search("record 3", k=30)]
            if preset is None:
                assert list(selected.gists()) == list(packed.gists())


def test_blocks_that_stay_whole_are_copied(tmp_path: Path) -> None:
    records = many(400, 6000)  # about 40 blocks
    path, out = tmp_path / "a.cola", tmp_path / "b.cola"
    Archive.pack(path, records, codec=CODEC)
    codec = CountingCodec()
    with Archive(path, codec) as archive:
        archive.select(out, ids=["id-200"], drop=True)
        assert codec.coded == 1
        assert codec.decoded == 1
    assert list(Archive(out, CODEC)) == records[:200] + records[201:]
    with Archive(path, codec) as archive:
        codec.coded = codec.decoded = 0
        archive.select(out, where="n < 300", overwrite=True)
        assert codec.coded <= 1 and codec.decoded < 14
    # Of every tenth record nothing would stay whole: blocks are filled anew.
    with Archive(path, CODEC) as archive:
        archive.select(out, ids=[f"id-{i}" for i in range(0, 400, 10)], overwrite=True)
    with Archive(out, CODEC) as selected:
        assert list(selected) == records[::10]
        assert selected.manifest.blocks == 4


def test_an_archive_is_thinned_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.cola"
    Archive.pack(path, many(50, 4000), codec=CODEC)
    with Archive(path, CODEC) as archive, pytest.raises(UsageError, match="exists already"):
        archive.select(path, where="n = 3", drop=True)
    with Archive(path, CODEC) as archive:
        archive.select(path, where="n = 3", drop=True, overwrite=True)
        assert len(archive) == 50  # the reader has what it opened
    with Archive(path, CODEC) as archive:
        assert len(archive) == 49 and "id-3" not in archive
        archive.verify()


def letters(texts: Sequence[str]) -> np.ndarray:
    return np.array([[text.count(c) + 0.1 for c in "abcdefgh"] for text in texts], np.float32)


def test_codes_of_another_embedder_move_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colazip.archive.writer.GROUP_BLOCKS", 2)
    calls = 0

    def counted(texts: Sequence[str]) -> np.ndarray:
        nonlocal calls
        calls += len(texts)
        return letters(texts)

    embedder = Embedder(counted, name="letters", code_bytes=4)
    codec = PlainCodec(passage_bytes=2000)
    records = [
        Record(("abcdefgh"[i % 8] * (i % 5 + 1) + " x" * (i * 150)).encode(), f"{i}-") for i in range(60)
    ]
    path, out = tmp_path / "a.cola", tmp_path / "b.cola"
    Archive.pack(path, records, codec=codec, embedder=embedder)
    calls = 0
    with Archive(path, codec, embedder=embedder) as archive:
        assert archive.manifest.blocks > 4
        dropped = ["7-", "31-"]
        archive.select(out, ids=dropped, drop=True)
        assert calls == 0
        wanted = [
            (hit.id, hit.score, hit.span) for hit in archive.search("ccc", k=60) if hit.id not in dropped
        ]
    with Archive(out, codec, embedder=embedder) as selected:
        assert list(selected) == [record for record in records if record.id not in dropped]
        assert [(hit.id, hit.score, hit.span) for hit in selected.search("ccc", k=60)] == wanted
        selected.verify()


def test_what_can_not_be_selected(tmp_path: Path) -> None:
    path, out = tmp_path / "a.cola", tmp_path / "b.cola"
    Archive.pack(path, many(30, 4000), codec=CODEC)
    with Archive(path, CODEC) as archive:
        for both in ({}, {"where": "n = 1", "ids": ["id-1"]}):
            with pytest.raises(UsageError, match="by a filter or by their ids"):
                archive.select(out, **both)
        with pytest.raises(RecordNotFoundError, match="no record has the id 'id-99'"):
            archive.select(out, ids=["id-99"])
        with pytest.raises(UsageError, match="not one text"):
            archive.select(out, ids="id-1")
        with pytest.raises(UsageError, match="names column 'year'"):
            archive.select(out, where="year = 1")
        archive.strip([EXACT], tmp_path / "gist.cola")
    assert not out.exists()
    with Archive(tmp_path / "gist.cola", CODEC) as archive:
        with pytest.raises(UsageError, match="has no exact text"):
            archive.select(out, where="n = 1", drop=True)
        archive.select(out, where="n >= 0")  # all of it: nothing is coded
        assert list(Archive(out, CODEC).gists()) == list(archive.gists())
        archive.select(out, where="n >= 0", drop=True, overwrite=True)
        assert len(Archive(out, CODEC)) == 0
        with pytest.raises(MissingLayerError):
            list(archive)


def test_a_codec_that_writes_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "a.cola", tmp_path / "b.cola"
    Archive.pack(path, many(30, 4000), codec=CODEC)
    with Archive(path, CODEC) as archive:
        monkeypatch.setattr(PlainCodec, "conditional", True)
        with pytest.raises(UsageError, match=r"were coded without its search codes; .*conditional=False"):
            archive.select(out, where="n = 1", drop=True)
        monkeypatch.undo()
        monkeypatch.setattr(PlainCodec, "code_bytes", 16)
        with pytest.raises(
            UsageError, match=r"search codes of None bytes.*from_pretrained\(code_bytes=None\)"
        ):
            archive.select(out, where="n = 1", drop=True)
    Archive.pack(path, many(30, 4000), codec=CODEC, layers=[SEARCH, GIST, EXACT], overwrite=True)
    with Archive(path, CODEC) as archive:
        archive.select(out, where="n = 1", drop=True)
        assert archive.manifest.code_bytes == 16
