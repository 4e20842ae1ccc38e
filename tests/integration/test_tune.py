"""`colazip tune`: a model learns text of another kind, and stays the model it was in what is searched."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from colazip.codec import Codec
from colazip.errors import ColazipError, InputError
from colazip.pretrained import load, thawed, with_coder
from colazip.train import tune as tuning
from colazip.train.data import TokenStore, read_texts
from colazip.train.dictionary import smaller_dictionary, train_dictionary
from tests.tiny_model import tiny_folder, tiny_model

ROOT = Path(__file__).parents[2]
SCHEDULE = replace(tuning.schedule(60, 256, 1e-2, 3), save_every=20)

pytestmark = pytest.mark.usefixtures("one_thread")


def lines(count: int, seed: int) -> list[str]:
    """A log of a service that no model of prose foresees."""
    rng = np.random.default_rng(seed)
    words = [
        "GET",
        "PUT",
        "POST",
        "cache",
        "miss",
        "hit",
        "timeout",
        "retry",
        "shard",
        "replica",
        "quorum",
        "commit",
    ]
    found = []
    for _ in range(count):
        middle = " ".join(rng.choice(words, 8))
        found.append(f'{{"ts": {rng.integers(10**6)}, "path": "/v1/{middle}", "ms": {rng.integers(99)}}}')
    return found


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("log") / "log.jsonl", lines(400, 0))


@pytest.fixture(scope="module")
def tuned(log: Path) -> Path:
    """Folder of a run, on one thread: with more of them gradients are other sums."""
    out, before = log.parent / "run", torch.get_num_threads()
    torch.set_num_threads(1)
    tuning.tune(tiny_model(), SCHEDULE, data=[log], out=out)
    torch.set_num_threads(before)
    return out


def size(codec: Codec, texts: list[str]) -> int:
    blob = codec.encode_blocks([[text.encode() for text in texts]])[0]
    return sum(map(len, blob.layers.values()))


def test_text_like_it_takes_less(tuned: Path) -> None:
    codec, before = Codec.from_pretrained(tuned / "model"), Codec(tiny_model())
    fresh = lines(60, 1)
    assert size(codec, fresh) < 0.8 * size(before, fresh)
    odd = [b"", b"\xff\x00 no text at all", *(text.encode() for text in fresh[:5])]
    assert codec.decode(codec.encode(odd)) == odd


def test_search_is_what_it_was(tuned: Path) -> None:
    codec, before = Codec.from_pretrained(tuned / "model"), Codec(tiny_model())
    texts = ["yeast and flour", lines(1, 2)[0]]
    assert np.array_equal(codec.vectors(texts), before.vectors(texts))
    prior = {name for name in before.model.tensors if name.startswith(("prior.", "search."))}
    assert all(np.array_equal(codec.model.tensors[n], before.model.tensors[n]) for n in prior)
    assert codec.model.id != before.model.id


def test_the_card_says_what_was_gained(tuned: Path) -> None:
    card = (tuned / "model" / "README.md").read_text()
    assert tiny_model().id in card and "log.jsonl" in card and str(tuned) not in card
    before = json.loads((tuned / "before.json").read_text())
    last = json.loads((tuned / "vae" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["total_bpb"] < before["total_bpb"]
    assert f"{before['total_bpb']:.3f} | {last['total_bpb']:.3f}" in card
    assert load(tuned / "model").config.name == "tiny-tuned"


def test_killed_and_resumed_it_is_the_same_model(
    log: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colazip.train.loop import Loop

    save, saved = Loop._save, []

    def save_and_die(loop: Loop) -> None:
        save(loop)
        saved.append(loop.step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(tiny_model(), SCHEDULE, data=[log], out=tmp_path / "run")
    assert saved == [20]
    monkeypatch.undo()
    with pytest.raises(InputError, match="--resume"):
        tuning.tune(tiny_model(), SCHEDULE, data=[log], out=tmp_path / "run")
    with pytest.raises(InputError, match="--steps 60"):
        other = replace(SCHEDULE, steps=70)
        tuning.tune(tiny_model(), other, data=[log], out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="not from"):
        tuning.tune(load(tuned / "model"), SCHEDULE, data=[log], out=tmp_path / "run", resume=True)
    identity = tuning.tune(tiny_model(), SCHEDULE, data=[log], out=tmp_path / "run", resume=True)
    assert identity == load(tuned / "model").id


def test_thawed_weights_freeze_as_they_were() -> None:
    model = tiny_model()
    again = with_coder(model, thawed(model), model.config.name, model.dictionary)
    assert again.id == model.id


def test_the_better_dictionary_stays() -> None:
    own = train_dictionary(lines(400, 3), 2048)
    other = train_dictionary(["one two three four " * 20 + str(n) for n in range(400)], 2048)
    assert own is not None and other is not None
    assert smaller_dictionary([other, own], lines(50, 4)) == own
    assert smaller_dictionary([own, own[:]], lines(5, 4)) is own


def test_too_little_to_hold_out(tmp_path: Path) -> None:
    few = write_lines(tmp_path / "few.jsonl", lines(49, 0))
    with pytest.raises(ColazipError, match="--validation"):
        tuning.tune(tiny_model(), SCHEDULE, data=[few], out=tmp_path / "run")


def test_a_prior_goes_on_learning(log: Path, tmp_path: Path) -> None:
    """It tells such text better; what is stored stays the same, and so do id and archives."""
    model, schedule = tiny_model(), replace(tuning.prior_schedule(40, 256, 1e-2), save_every=20)
    out = tmp_path / "run"
    identity = tuning.tune_prior(model, schedule, data=[log], out=out)
    tuned = load(out / "model")
    assert identity == tuned.id == model.id
    figures = json.loads((out / "before.json").read_text()), tuned.prior
    before, after = figures[0]["flow_loss"], read_figures(out)["prior"]["flow_loss"]
    assert (
        after < before
        and f"| flow_loss | {before:.3f} | {after:.3f} |" in (out / "model" / "README.md").read_text()
    )
    for name, value in model.tensors.items():
        assert name.startswith("prior.") or np.array_equal(value, tuned.tensors[name])
    moved = [n for n in model.tensors if not np.array_equal(model.tensors[n], tuned.tensors[n])]
    assert moved and len(tuned.tensors) == len(model.tensors)
    block = [text.encode() for text in lines(5, 3)]
    assert Codec(tuned).encode_blocks([block])[0].layers == Codec(model).encode_blocks([block])[0].layers
    with pytest.raises(InputError, match="no run of tune"):
        tuning.tune(model, SCHEDULE, data=[log], out=out, resume=True)


def read_figures(out: Path) -> dict:
    from safetensors import safe_open

    with safe_open(out / "model" / "weights.safetensors", "np") as file:
        return json.loads(file.metadata()["figures"])


def test_the_command(tmp_path: Path) -> None:
    write_lines(tmp_path / "log.jsonl", lines(120, 0))
    write_lines(tmp_path / "held.jsonl", lines(20, 1))

    def colazip(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "colazip", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    common = "tune", "--data", "log.jsonl", "--model", tiny_folder(), "-o", "run", "--steps", 4
    done = colazip(*common, "--validation", "held.jsonl", "--patches", 256)
    assert done.returncode == 0 and not done.stdout, done.stderr
    identity = load(tmp_path / "run" / "model").id
    assert identity in done.stderr
    prior = colazip(*common[:5], "-o", "prior", "--steps", 2, "--patches", 256, "--prior")
    assert prior.returncode == 0 and load(tiny_folder()).id in prior.stderr, prior.stderr
    packed = colazip("pack", "held.jsonl", "-o", "a.cola", "--model", "run/model")
    assert packed.returncode == 0, packed.stderr
    blob = colazip("compress", "held.jsonl", "-o", "held.cz", "--model", "run/model")
    assert blob.returncode == 0, blob.stderr
    assert identity[:8] in colazip("decompress", "held.cz", "-o", "back").stderr
    assert colazip("decompress", "held.cz", "-o", "back", "--model", "run/model").returncode == 0
    assert (tmp_path / "back").read_bytes() == (tmp_path / "held.jsonl").read_bytes()
    refused = colazip("get", "a.cola", "0", "--model", tiny_folder())
    assert refused.returncode == 1 and identity[:8] in refused.stderr and "Traceback" not in refused.stderr
    for wrong, code, word in (
        (("--data", "none.jsonl", "-o", "other"), 1, "no such file"),
        (("--text-column", "body", "-o", "other"), 1, "'body'"),
        (("--device", "cuda", "-o", "other"), 2, "--device cpu"),
    ):
        if "cuda" in wrong and torch.cuda.is_available():
            continue
        failed = colazip(*common, *wrong)
        assert failed.returncode == code and word in failed.stderr, failed.stderr
        assert "Traceback" not in failed.stderr


def test_a_book_is_held_out_in_pieces(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    paragraphs = [f"{n}. " + line for n, line in enumerate(lines(6000, 6))]
    book.write_text("\n\n".join(paragraphs))
    tuning.tune(tiny_model(), replace(SCHEDULE, steps=1), data=[book], out=tmp_path / "run")
    held, train = (TokenStore.open(tmp_path / "run" / name) for name in ("validation", "train"))
    assert held.text_bytes + train.text_bytes == book.stat().st_size
    assert 40 * held.text_bytes < train.text_bytes and len(train.ends) > 50


def test_what_fails_leaves_nothing(log: Path, tmp_path: Path) -> None:
    binary, csv = tmp_path / "x.cola", tmp_path / "x.csv"
    binary.write_bytes(bytes(range(256)))
    csv.write_text("body\n" + "a,b\n" * 3)
    out = tmp_path / "run"
    for data, settings, error in (
        (binary, {"validation": [log]}, "is binary"),
        (csv, {"validation": [log]}, "x.csv"),
        (log, {"text_column": "body"}, "'body'"),
        (log, {"resume": True}, "no run of tune"),
    ):
        with pytest.raises(InputError, match=error):
            tuning.tune(tiny_model(), SCHEDULE, data=[data], out=out, **settings)
        assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="not an empty folder"):
        tuning.tune(tiny_model(), SCHEDULE, data=[log], out=out)
    assert (out / "mine.txt").read_text() == "kept"


def test_text_of_csv(tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text('text\tsource\n"two\nlines"\ta\nother\tb\n\tc\n')
    assert list(read_texts([table])) == ["two\nlines", "other"]
    assert list(read_texts([table], skip_sources=["b"])) == ["two\nlines"]
