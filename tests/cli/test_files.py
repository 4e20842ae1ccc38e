"""pack and unpack of files, folders, lines and streams."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colazip.archive import Archive, Record
from tests.cli.conftest import Run
from tests.plain_codec import PlainCodec

TREE = {
    "a.txt": b"first\n",
    "b/empty": b"",
    "b/c/deep.bin": bytes(range(256)),
    ".hidden": "versteckt: äöü 🦜\r\n".encode(),
    "b/ space .md": b"no newline at the end",
}


def make_tree(root: Path) -> Path:
    for name, data in TREE.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def read_tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_folder_comes_back_with_the_same_bytes_and_paths(run: Run, tmp_path: Path) -> None:
    make_tree(tmp_path / "docs")
    packed = run("pack", "docs", "-o", "d.cola")
    assert packed.code == 0, packed
    assert "d.cola: 5 records" in packed.error
    assert run("unpack", "d.cola", "-o", "back").code == 0
    assert read_tree(tmp_path / "back") == TREE
    with Archive("d.cola") as archive:
        assert list(archive.ids()) == sorted(TREE)
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".colazip*"))


def test_names_of_outputs_that_mislead(run: Run, fails, tmp_path: Path) -> None:
    make_tree(tmp_path / "docs")
    run("pack", "docs", "-o", "d.cola")
    assert "files come back as a folder" in fails("unpack", "d.cola", "-o", "x.jsonl", code=2)
    assert run("unpack", "d.cola", "-o", "x.jsonl", "--format", "files").code == 0
    assert read_tree(tmp_path / "x.jsonl") == TREE
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    run("pack", "t.jsonl", "-o", "t.cola")
    assert "not compressed" in fails("unpack", "t.cola", "-o", "t.csv.gz", code=2)


def test_rows_in_no_table_are_one_record_with_a_warning(run: Run, tmp_path: Path) -> None:
    for name in ("t.jsonl.gz", "t.json"):
        (tmp_path / name).write_bytes(b'[{"text": "a"}]')
        packed = run("pack", name, "-o", name + ".cola")
        assert packed.code == 0 and f"warning: {name}: packed as one record" in packed.error


def test_links_to_nothing_are_left_out(run: Run, tmp_path: Path) -> None:
    make_tree(tmp_path / "docs")
    (tmp_path / "docs" / "gone").symlink_to("nowhere")
    packed = run("pack", "docs", "-o", "d.cola")
    assert packed.code == 0 and "docs/gone: left out: a link to nothing" in packed.error
    assert run("unpack", "d.cola", "-o", "back").code == 0
    assert read_tree(tmp_path / "back") == TREE


def test_a_folder_is_named_after_its_source_by_default(run: Run, tmp_path: Path) -> None:
    make_tree(tmp_path / "docs")
    run("pack", "docs", "-o", "d.cola")
    (tmp_path / "docs").rename(tmp_path / "moved")
    assert run("unpack", "d.cola", "-q").error == ""
    assert read_tree(tmp_path / "docs") == TREE


def test_several_sources_keep_their_paths(run: Run, tmp_path: Path) -> None:
    make_tree(tmp_path / "docs")
    (tmp_path / "note").write_bytes(b"a note")
    run("pack", "docs/b", "note", "-o", "d.cola")
    assert run("unpack", "d.cola").code == 0  # into a folder with the name of the archive
    assert sorted(read_tree(tmp_path / "d")) == [
        "docs/b/ space .md",
        "docs/b/c/deep.bin",
        "docs/b/empty",
        "note",
    ]


def test_the_archive_in_the_packed_folder_is_left_out(run: Run, tmp_path: Path) -> None:
    make_tree(tmp_path)
    assert run("pack", ".", "-o", "out.cola").code == 0
    assert run("pack", ".", "-o", "out.cola", "-f").code == 0
    with Archive("out.cola") as archive:
        assert list(archive.ids()) == sorted(TREE)


def test_links_to_files_are_followed_and_other_entries_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "real").write_bytes(b"real")
    (tmp_path / "d" / "link").symlink_to("real")
    (tmp_path / "d" / "loop").symlink_to("..")
    os.mkfifo(tmp_path / "d" / "fifo")
    packed = run("pack", "d", "-o", "d.cola")
    assert packed.code == 0
    assert "d/loop: left out" in packed.error and "d/fifo: left out" in packed.error
    run("unpack", "d.cola", "-o", "back")
    assert read_tree(tmp_path / "back") == {"real": b"real", "link": b"real"}


def test_one_file(run: Run, tmp_path: Path) -> None:
    data = b"Ein Satz.\r\nNoch einer." + b"\xff\0"
    (tmp_path / "in.txt").write_bytes(data)
    assert run("pack", "in.txt", "-o", "a.cola").code == 0
    assert run("unpack", "a.cola", "-o", "-").out == data
    (tmp_path / "in.txt").unlink()
    assert run("unpack", "a.cola").code == 0
    assert (tmp_path / "in.txt").read_bytes() == data
    assert run("get", "a.cola", "in.txt").out == data


def test_standard_input_to_standard_output(run: Run, tmp_path: Path) -> None:
    data = b"piped\ntext"
    assert run("pack", "-", "-o", "a.cola", stdin=data).code == 0
    outcome = run("unpack", "a.cola")
    assert (outcome.code, outcome.out, outcome.error) == (0, data, "")
    assert run("get", "a.cola", "0").out == data


@pytest.mark.parametrize("data", [b"one\ntwo\r\n\nfour", b"\n", b"a\rb\n", b"\xff\xfe\n\0\n"])
def test_lines_keep_their_ends(run: Run, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "log").write_bytes(data)
    assert run("pack", "log", "--format", "lines", "-o", "a.cola").code == 0
    with Archive("a.cola") as archive:
        assert len(archive) == len(data.splitlines(keepends=True)) or b"\r" in data
    assert run("unpack", "a.cola", "-o", "-").out == data
    assert run("pack", "-", "--format", "lines", "-o", "b.cola", stdin=data).code == 0
    assert run("unpack", "b.cola").out == data


def test_lines_of_a_folder(run: Run, tmp_path: Path) -> None:
    make_tree(tmp_path / "docs")
    run("pack", "docs", "--format", "lines", "-o", "a.cola")
    assert run("unpack", "a.cola").out == b"".join(TREE[name] for name in sorted(TREE))


def test_gist(run: Run, tmp_path: Path) -> None:
    make_tree(tmp_path / "docs")
    (tmp_path / "docs" / "a.txt").write_bytes(b"x" * 50)
    run("pack", "docs", "-o", "d.cola")
    assert run("unpack", "d.cola", "--from", "gist", "-o", "back").code == 0
    assert read_tree(tmp_path / "back")["a.txt"] == b"x" * 40
    assert run("get", "d.cola", "a.txt", "--from", "gist").out == b"x" * 40


def test_existing_things_are_kept_without_force(run: Run, fails, tmp_path: Path) -> None:
    make_tree(tmp_path / "docs")
    run("pack", "docs", "-o", "d.cola")
    before = (tmp_path / "d.cola").read_bytes()
    assert "-f" in fails("pack", "docs", "-o", "d.cola", code=2)
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "mine").write_bytes(b"mine")
    assert "-f" in fails("unpack", "d.cola", "-o", "back", code=2)
    assert read_tree(tmp_path / "back") == {"mine": b"mine"}
    assert run("unpack", "d.cola", "-o", "back", "-f").code == 0
    assert read_tree(tmp_path / "back") == {**TREE, "mine": b"mine"}
    assert (tmp_path / "d.cola").read_bytes() == before
    (tmp_path / "file").write_bytes(b"mine")
    assert "not a folder" in fails("unpack", "d.cola", "-o", "file", "-f", code=2)
    run("pack", "docs/a.txt", "-o", "one.cola")
    assert "-f" in fails("unpack", "one.cola", "-o", "file", code=2)
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert run("unpack", "one.cola", "-o", "file", "-f").code == 0
    assert (tmp_path / "file").read_bytes() == TREE["a.txt"]
    assert run("unpack", "one.cola", "-o", os.devnull).code == 0


@pytest.mark.parametrize("id", ["/etc/x", "../x", "a/../../x", "a//x", "./x", ".", "..", "", "a/", "a\0b"])
def test_ids_that_lead_out_of_the_folder_are_refused(run: Run, fails, tmp_path: Path, id: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    records = [Record(b"good", "good"), Record(b"bad", id)]
    Archive.pack(work / "a.cola", records, codec=PlainCodec(), source={"kind": "files"})
    before = read_tree(tmp_path)
    assert "is no relative path" in fails("unpack", "work/a.cola", "-o", "work/back")
    assert read_tree(tmp_path) == before
    assert not (work / "back").exists()
    assert run("unpack", "work/a.cola", "--format", "jsonl", "-o", "-").code == 0


def test_ids_that_are_file_and_folder(fails, tmp_path: Path) -> None:
    for at, ids in enumerate([("a", "a/b"), ("a/b", "a")]):
        name = tmp_path / f"{at}.cola"
        Archive.pack(name, [Record(b"", id) for id in ids], codec=PlainCodec(), source={"kind": "files"})
        assert "colazip: error" in fails("unpack", name, "-o", "back")
        assert not (tmp_path / "back").exists()


def test_links_in_the_target_are_not_followed(run: Run, fails, tmp_path: Path) -> None:
    make_tree(tmp_path / "docs")
    run("pack", "docs", "-o", "d.cola")
    (tmp_path / "outside").mkdir()
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "b").symlink_to(tmp_path / "outside")
    assert "is a link" in fails("unpack", "d.cola", "-o", "back", "-f")
    assert not list((tmp_path / "outside").iterdir())
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["b"]
    (tmp_path / "back" / "b").unlink()
    (tmp_path / "victim").write_bytes(b"kept")
    (tmp_path / "back" / "a.txt").symlink_to(tmp_path / "victim")
    assert run("unpack", "d.cola", "-o", "back", "-f").code == 0
    assert (tmp_path / "victim").read_bytes() == b"kept"
    assert read_tree(tmp_path / "back") == TREE


@pytest.mark.parametrize("name", ["../x", "/etc/x", "", "..", 7, ["x"], "a\0"])
def test_hostile_source_names(fails, tmp_path: Path, name: object) -> None:
    source = {"kind": "file", "name": name}
    Archive.pack(tmp_path / "a.cola", [b"text"], codec=PlainCodec(), source=source)
    assert "no file name" in fails("unpack", "a.cola")


def test_umask_is_respected(run: Run, tmp_path: Path) -> None:
    make_tree(tmp_path / "docs")
    old = os.umask(0o027)
    try:
        run("pack", "docs", "-o", "d.cola")
        run("unpack", "d.cola", "-o", "back")
        run("unpack", "d.cola", "--format", "text", "-o", "joined")
    finally:
        os.umask(old)
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "back" / "a.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "joined").stat().st_mode & 0o777 == 0o640
