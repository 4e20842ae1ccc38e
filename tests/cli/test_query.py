"""get, search, info, verify, strip, merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from colazip.archive import Archive, Record
from tests.cli.conftest import Run
from tests.plain_codec import PlainCodec

TEXTS = {
    "boat": "The boat lies in the harbour.\nIt is blue.",
    "bread": "Bread needs flour and water.",
    "café": "Le café est \x1b[31mfroid\x1b[0m.",
}


@pytest.fixture(autouse=True)
def archive(tmp_path: Path) -> None:
    records = [Record(text.encode(), id, {"n": at}) for at, (id, text) in enumerate(TEXTS.items())]
    Archive.pack(tmp_path / "a.cola", [*records, Record(b"\xff\0", "bin")], codec=PlainCodec())


def test_get(run: Run, tmp_path: Path) -> None:
    assert run("get", "a.cola", "bread", "boat").text == TEXTS["bread"] + TEXTS["boat"]
    assert run("get", "a.cola", "bin").out == b"\xff\0"
    assert run("get", "a.cola", "boat", "-o", "out").out == b""
    assert (tmp_path / "out").read_text() == TEXTS["boat"]
    lines = run("get", "a.cola", "café", "boat", "--json").text.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "café", "text": TEXTS["café"], "metadata": {"n": 2}},
        {"id": "boat", "text": TEXTS["boat"], "metadata": {"n": 0}},
    ]


def test_list(run: Run, fails) -> None:
    assert run("list", "a.cola").text == "boat\nbread\ncafé\nbin\n"
    assert run("list", "a.cola", "--where", "n >= 1").text == "bread\ncafé\n"
    lines = run("list", "a.cola", "--json", "--where", "n = 0 or n is null").text.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "boat", "metadata": {"n": 0}},
        {"id": "bin", "metadata": {}},
    ]
    assert "the archive has n" in fails("list", "a.cola", "--where", "year = 1", code=2)


def test_unpack_what_passes_a_filter(run: Run, fails) -> None:
    lines = run("unpack", "a.cola", "--where", "n >= 1", "-o", "-").text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["bread", "café"]
    gists = run("unpack", "a.cola", "--where", "n = 2", "--from", "gist", "-o", "-").text
    assert json.loads(gists) == {"id": "café", "text": TEXTS["café"][:40], "n": 2}
    assert "the archive has n" in fails("unpack", "a.cola", "--where", "year = 1", "-o", "x", code=2)


def test_get_json_of_bytes(fails) -> None:
    assert "'bin' is not UTF-8 text" in fails("get", "a.cola", "bin", "--json")


def test_search(run: Run) -> None:
    hits = json.loads(run("search", "a.cola", "bread needs flour and water.", "-k", "2", "--json").out)
    assert [set(hit) for hit in hits] == [{"id", "score", "scores", "metadata", "snippet", "span"}] * 2
    assert hits[0]["scores"] == {"cosine": hits[0]["score"]}
    assert (hits[0]["id"], hits[0]["metadata"]) == ("bread", {"n": 1})
    assert hits[0]["score"] >= hits[1]["score"]
    assert hits[0]["span"] == [0, len(TEXTS["bread"])]
    shown = run("search", "a.cola", "café")
    assert len(shown.text.splitlines()) == 3
    assert "\x1b" not in shown.text


def test_search_by_words(run: Run, fails) -> None:
    assert "colazip index a.cola" in fails("search", "a.cola", "flour", "--mode", "lexical")
    made = run("index", "a.cola")
    assert (made.code, made.out) == (0, b"")
    assert "a.cola.index: " in made.error and "words" in made.error
    hits = json.loads(run("search", "a.cola", "flour", "--mode", "lexical", "--json").out)
    assert [hit["id"] for hit in hits] == ["bread"]
    assert hits[0]["scores"] == {"bm25": hits[0]["score"]} and "flour" in hits[0]["snippet"]
    hits = json.loads(run("search", "a.cola", "flour", "--json").out)
    assert hits[0]["id"] == "bread" and hits[0]["scores"].keys() == {"bm25", "cosine"}
    assert run("search", "a.cola", "flour", "--no-snippets").text.splitlines()[0].endswith("bread")
    facts = json.loads(run("info", "a.cola", "--json").out)
    assert facts["index"]["state"] == "current" and facts["index"]["bytes"]["words"] > 0
    assert "index.bytes.words" in run("info", "a.cola").text
    assert "index files" in run("verify", "a.cola").error
    assert "--rebuild" in fails("index", "a.cola", code=2)
    assert run("index", "a.cola", "--rebuild", "-q").error == ""
    assert "refine" in run("index", "a.cola", "--rebuild", "--refine").error
    run("strip", "a.cola", "--drop", "exact", "-o", "a.cola", "-f")
    assert "stale" in fails("search", "a.cola", "flour")
    assert "stale" in run("info", "a.cola").text
    assert run("search", "a.cola", "flour", "--mode", "semantic").code == 0
    refined = run("index", "a.cola", "--rebuild").error
    assert "refine" in refined and "words" not in refined
    assert run("search", "a.cola", "flour").code == 0
    run("strip", "a.cola", "--drop", "gist", "-o", "s.cola")
    assert "no gist layer" in fails("index", "s.cola", "--refine")


def test_select(run: Run, fails, tmp_path: Path) -> None:
    assert "2 of 4 records" in run("select", "a.cola", "boat", "bin", "-o", "b.cola").error
    assert run("list", "b.cola").text == "boat\nbin\n"
    (tmp_path / "ids").write_text("bread\n\ncafé\r\n", encoding="utf-8")
    run("select", "a.cola", "--ids", "ids", "--drop", "-o", "b.cola", "-f")
    assert run("list", "b.cola").text == "boat\nbin\n"
    run("select", "a.cola", "--ids", "-", "-o", "b.cola", "-f", stdin="café".encode())
    assert run("unpack", "b.cola", "--format", "text", "-o", "-").text == TEXTS["café"]
    run("select", "a.cola", "--where", "n >= 1", "--drop", "-f", "-o", "a.cola")
    assert run("list", "a.cola").text == "boat\nbin\n"
    assert "by their ids, or by --where" in fails("select", "a.cola", "-o", "c.cola", code=2)
    assert "by --where" in fails("select", "a.cola", "boat", "--where", "n = 1", "-o", "c.cola", code=2)
    assert "no record has the id 'bread'" in fails("select", "a.cola", "bread", "-o", "c.cola")
    assert "exists already" in fails("select", "a.cola", "boat", "-o", "b.cola", code=2)
    assert not (tmp_path / "c.cola").exists()


def test_many_queries(run: Run, fails, tmp_path: Path) -> None:
    (tmp_path / "queries").write_text("\ufeffbread needs flour\n\nboats, 🚤\r\n", encoding="utf-8")
    for stdin, name in ((b"", "queries"), ((tmp_path / "queries").read_bytes(), "-")):
        answers = run("search", "a.cola", "--queries", name, "-k", "2", stdin=stdin).text.splitlines()
        found = [json.loads(line) for line in answers]
        assert [answer["query"] for answer in found] == ["bread needs flour", "", "boats, 🚤"]
        assert found[1]["hits"] == []
        for answer in found[::2]:
            alone = json.loads(run("search", "a.cola", answer["query"], "-k", "2", "--json").out)
            assert answer["hits"] == alone and len(alone) == 2
    some = run("search", "a.cola", "--queries", "queries", "--where", "n = 1", "--no-snippets").text
    assert [hit["id"] for hit in json.loads(some.splitlines()[0])["hits"]] == ["bread"]
    assert "no such file" in fails("search", "a.cola", "--queries", "none")
    assert "give a query, a record" in fails("search", "a.cola", "x", "--queries", "queries", code=2)


def test_search_with_a_filter(run: Run, fails) -> None:
    hits = json.loads(run("search", "a.cola", "bread", "--where", "n >= 1 and n < 2", "--json").out)
    assert [hit["id"] for hit in hits] == ["bread"]
    assert "no hits" in run("search", "a.cola", "bread", "--where", "n > 5").error
    assert "the archive has n" in fails("search", "a.cola", "x", "--where", "year = 1", code=2)
    assert "holds numbers" in fails("search", "a.cola", "x", "--where", "n = 'a'", code=2)
    assert "expected a value" in fails("search", "a.cola", "x", "--where", "n =", code=2)


def test_search_without_the_layer(run: Run, fails) -> None:
    run("strip", "a.cola", "--drop", "search", "-o", "s.cola")
    assert "search" in fails("search", "s.cola", "boat")


def test_presets(run: Run, fails, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS.values()))
    assert run("pack", "t.jsonl", "-o", "f.cola", "--preset", "fast").code == 0
    assert json.loads(run("info", "f.cola", "--json").out)["layers"] == ["search", "plain"]
    assert run("get", "f.cola", "1").text == TEXTS["bread"]
    assert json.loads(run("search", "f.cola", "bread needs flour and water.", "--json").out)[0]["id"] == "1"
    back = run("unpack", "f.cola", "-o", "-").text.splitlines()
    assert [json.loads(line)["text"] for line in back] == list(TEXTS.values())
    assert "leave out --from gist" in fails("unpack", "f.cola", "-o", "-", "--from", "gist")
    assert "no gist layer" in fails("get", "f.cola", "1", "--from", "gist")
    assert run("verify", "f.cola").code == 0
    assert run("strip", "f.cola", "--drop", "search", "-o", "p.cola").code == 0
    assert run("get", "p.cola", "0").text == TEXTS["boat"]
    for options, advice in (
        (["--preset", "fast", "--layers", "gist"], "preset small"),
        (["--layers", "search,plain"], "preset fast"),
        (["--preset", "best"], "balanced"),
    ):
        assert advice in fails("pack", "t.jsonl", "-o", "g.cola", *options, code=2)


def test_info(run: Run) -> None:
    facts = json.loads(run("info", "a.cola", "--json").out)
    assert facts["records"] == 4
    assert facts["layers"] == ["search", "gist", "exact"]
    shown = run("info", "a.cola").text
    assert "records" in shown and "bytes.gist" in shown and "search, gist, exact" in shown


def test_verify(run: Run) -> None:
    checked = run("verify", "a.cola")
    assert (checked.code, checked.out) == (0, b"")
    assert "a.cola: ok (4 records" in checked.error
    assert run("verify", "a.cola", "-q").error == ""


def test_strip(run: Run, fails, tmp_path: Path) -> None:
    assert "-f" in fails("strip", "a.cola", "--drop", "search", "-o", "a.cola", code=2)
    assert run("strip", "a.cola", "--drop", "search,exact", "-o", "g.cola").code == 0
    assert json.loads(run("info", "g.cola", "--json").out)["layers"] == ["gist"]
    assert run("strip", "a.cola", "--drop", "search", "-o", "a.cola", "-f").code == 0
    assert json.loads(run("info", "a.cola", "--json").out)["layers"] == ["gist", "exact"]
    assert run("get", "a.cola", "boat").text == TEXTS["boat"]


def test_layers(run: Run) -> None:
    run("pack", "-", "-o", "b.cola", "--layers", "search, gist", stdin=b"text")
    assert json.loads(run("info", "b.cola", "--json").out)["layers"] == ["search", "gist"]


def test_merge(run: Run, fails: Callable[..., str], tmp_path: Path) -> None:
    """Two tables become one, an archive grows under its name, and what does not go together says so."""
    lines = [json.dumps({"id": f"r{i}", "text": f"line {i}", "n": i}) + "\n" for i in range(5)]
    for name, some in (("x", lines[:3]), ("y", lines[3:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(some))
        assert run("pack", f"{name}.jsonl", "-o", f"{name}.cola", "--id-column", "id").code == 0
    outcome = run("merge", "x.cola", "y.cola", "-o", "all.cola")
    assert outcome.code == 0 and outcome.out == b"" and "all.cola: 5 records" in outcome.error
    assert run("unpack", "all.cola", "-o", "-").text == "".join(lines)
    assert run("get", "all.cola", "r4").out == b"line 4"
    assert "all.cola: exists" in fails("merge", "x.cola", "y.cola", "-o", "all.cola", code=2)
    assert "another record has the id 'r0'" in fails("merge", "x.cola", "x.cola", "-o", "twice.cola")
    assert run("merge", "x.cola", "y.cola", "-o", "x.cola", "--force").code == 0
    assert (tmp_path / "x.cola").read_bytes() == (tmp_path / "all.cola").read_bytes()
    assert "missing.cola" in fails("merge", "x.cola", "missing.cola", "-o", "c.cola")
    assert not (tmp_path / "c.cola").exists() and not (tmp_path / "twice.cola").exists()


def test_search_for_records_like_one(run: Run, fails: Callable[..., str]) -> None:
    outcome = run("search", "a.cola", "--like", "boat", "-k", "1", "--json")
    (hit,) = json.loads(outcome.out)
    assert outcome.code == 0 and hit["id"] in ("bread", "café") and set(hit["scores"]) == {"cosine"}
    assert "give a query" in fails("search", "a.cola", code=2)
    assert "give a query" in fails("search", "a.cola", "x", "--like", "boat", code=2)
    assert "leave out --mode" in fails("search", "a.cola", "--like", "boat", "--mode", "lexical", code=2)
    assert "no record 'x'" in fails("search", "a.cola", "--like", "x")
    assert "no search code" in fails("search", "a.cola", "--like", "bin", code=2)
