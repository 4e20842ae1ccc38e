"""The networks for a few lanes in compiled loops: texts and readings as NumPy has them, when they are used,
and where they are not to be had. Their tables are compared in `test_portable.py`."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from colazip.codec import Codec
from colazip.nn import compiled, loading
from colazip.nn.compiled import CompiledNetworks
from colazip.nn.portable import PortableNetworks
from colazip.pretrained import load
from tests.tiny_model import passages, tiny_codec, tiny_folder, tiny_model


@pytest.fixture
def much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_expected", 1 << 20)


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("count", [1, 5])
def test_texts_and_readings(
    much_work: None, monkeypatch: pytest.MonkeyPatch, conditional: bool, count: int
) -> None:
    """More patches than caches begin with, lanes of different lengths."""
    monkeypatch.setattr(compiled, "_ROOM", 4)
    model = load(tiny_folder())
    codec = Codec(model, conditional=conditional)
    parts = [[" ".join(passages()[i : i + 4])[: 900 - 170 * i].encode() for i in range(count)]]
    coded = codec.encode_blocks(parts)
    assert model.compiled is not None
    used = []
    start = model.compiled.start
    model.compiled.start = lambda *arguments: (used.append(arguments), start(*arguments))[1]  # type: ignore[method-assign]
    plain = Codec(tiny_model(), implementation="numpy", conditional=conditional)
    assert codec.decode_blocks(coded) == plain.decode_blocks(coded) == parts
    assert codec.read_gist(coded) == plain.read_gist(coded)
    assert len(used) == 2
    assert model.compiled._keys.shape[3] > compiled._ROOM


def test_lanes_that_follow_one() -> None:
    """As continuing a text has them: the state of one lane becomes that of all."""
    model = tiny_model()
    config, random = model.config, np.random.default_rng(1)
    patches = random.integers(0, config.vocabulary, (5, 4, config.patch))
    history = random.integers(0, config.vocabulary, (4, 3))
    none, lanes = np.zeros(4, np.int64), np.arange(4)
    said = []
    for net in (PortableNetworks(config, model.tensors), CompiledNetworks(config, model.tensors)):
        net.start(4, 0)
        tables = []
        for i, before in enumerate(patches):
            net.context(i, before)
            if i == 2:
                net.follow(3)
            tables += [net.class_table(0, lanes, history, none, none), net.slot_table(none)]
        said.append(tables)
    assert all(np.array_equal(a, b) for a, b in zip(*said, strict=True))
    assert not np.array_equal(said[0][-2][0], said[0][-2][1])  # what came later differs


def test_the_model_of_the_package(much_work: None) -> None:
    codec = Codec.from_pretrained()
    parts = [[("The " + passages()[0]).encode(), passages()[1][:150].encode()]]
    coded = codec.encode_blocks(parts)
    assert codec.model.compiled is not None
    assert codec.decode_blocks(coded) == parts
    assert codec.read_gist(coded) == Codec(codec.model, implementation="numpy").read_gist(coded)


def test_they_come_with_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_expected", 0)
    monkeypatch.setattr(loading, "_WORTH_LOADING", 1000)
    model = load(tiny_folder())
    codec = Codec(model)
    text = passages()[1].encode()
    (blob,) = tiny_codec().encode([text])
    loading._expected = 0
    assert codec.decode([blob]) == [text] and model.compiled is None
    while not loading.is_worth_loading():
        assert codec.decode([blob]) == [text]
    assert codec.decode([blob]) == [text] and model.compiled is not None


@pytest.mark.parametrize("what", ["they differ", "no place for them"])
def test_without_them(much_work: None, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def fail(*arguments: object) -> bool:
        raise RuntimeError("cannot cache function")

    monkeypatch.setattr(compiled, "agrees", fail if what == "no place for them" else lambda: False)
    model = load(tiny_folder())
    (blob,) = tiny_codec().encode([passages()[2]])
    assert Codec(model).decode([blob]) == [passages()[2].encode()] and model.compiled is None


def test_they_need_no_torch() -> None:
    (blob,) = tiny_codec().encode([passages()[0]])
    script = (
        "import sys; from colazip.codec import Codec; from colazip.nn import loading\n"
        f"loading.expect_work(1 << 20); codec = Codec.from_pretrained({str(tiny_folder())!r})\n"
        "text = codec.decode([sys.stdin.buffer.read()])[0]\n"
        "assert codec.model.compiled is not None and 'torch' not in sys.modules\n"
        "sys.stdout.buffer.write(text)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=blob, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == passages()[0].encode()
