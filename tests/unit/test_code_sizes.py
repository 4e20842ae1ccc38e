"""Models with search codes of several sizes, and with vectors in context and without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch

from colazip.archive import Archive
from colazip.archive.format import FOOTER, dump_manifest
from colazip.cli.main import main
from colazip.codec import Codec
from colazip.config import EncoderConfig, ModelConfig
from colazip.errors import FormatError, ModelError, UsageError
from colazip.layers import GIST, PLAIN, SEARCH
from colazip.nn.context import ContextEncoder
from colazip.nn.dit import DiT
from colazip.nn.shapes import coding_shapes
from colazip.nn.vae import TextVAE
from colazip.presets import FAST
from colazip.pretrained import Model, from_networks, load, save_pretrained
from colazip.tokenizer import Tokenizer
from colazip.vectors import SearchRows
from tests.tiny_model import passages

SMALL_CODES, LARGE_CODES = 4, 8
SHAPE = EncoderConfig(width=32, layers=1, heads=4, hidden=64)
TEXTS = passages()[:12]


def search_rows(config: ModelConfig) -> SearchRows:
    torch.manual_seed(5)
    encoder = ContextEncoder(config.vector, SHAPE.width, SHAPE.layers, SHAPE.heads, SHAPE.hidden)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.5)
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((config.vocabulary + config.word_rows, config.vector)).astype(np.float32)
    books = {
        m: rng.standard_normal((m, 256, config.vector // m)).astype(np.float32) / 4 for m in config.codes
    }
    return SearchRows(rows, books, encoder)


@pytest.fixture(scope="module")
def config(tiny_config: ModelConfig) -> ModelConfig:
    return replace(tiny_config, segment=256, code_sizes=(SMALL_CODES, LARGE_CODES), search_encoder=SHAPE)


@pytest.fixture(scope="module")
def model(config: ModelConfig, tiny_vae: TextVAE, tiny_tokenizer: Tokenizer) -> Model:
    return from_networks(config, tiny_tokenizer, tiny_vae, search_rows(config), DiT.for_text(config))


def pack(path: Path, codec: Codec, **options: object) -> Path:
    Archive.pack(path, TEXTS, codec=codec, layers=(SEARCH, PLAIN), preset=FAST, **options)
    return path


def test_an_archive_knows_the_size_of_its_codes(model: Model, tmp_path: Path) -> None:
    sizes = {}
    for wanted, found in ((None, SMALL_CODES), (SMALL_CODES, SMALL_CODES), (LARGE_CODES, LARGE_CODES)):
        path = pack(tmp_path / f"{wanted}.cola", Codec(model, code_bytes=wanted))
        for reader in (Codec(model), Codec(model, code_bytes=LARGE_CODES)):
            with Archive(path, reader) as archive:
                assert archive.info()["code_bytes"] == archive.manifest.code_bytes == found
                assert archive.verify()["decoded"] == [SEARCH, "plain"]
                assert len(archive.search("how does it work?", 3)) == 3
        sizes[found] = path.stat().st_size
    assert sizes[SMALL_CODES] < sizes[LARGE_CODES]


def test_what_has_no_codes_of_the_model_names_no_size(model: Model, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.cola", Codec(model, code_bytes=LARGE_CODES))
    with Archive(path, Codec(model)) as archive:
        archive.strip([SEARCH], tmp_path / "b.cola")
        archive.strip([PLAIN], tmp_path / "c.cola")
    pack(tmp_path / "d.cola", Codec(model), embedder=_letters)
    for name, found in (("b", None), ("c", LARGE_CODES), ("d", None)):
        with Archive(tmp_path / f"{name}.cola", Codec(model)) as archive:
            assert archive.manifest.code_bytes == found


def _letters(texts: list[str]) -> np.ndarray:
    return np.array([[text.count(letter) for letter in "etaoinsh"] for text in texts], np.float32)


def test_a_size_that_the_model_lacks(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="codes of 4 or 8"):
        Codec(model, code_bytes=16)
    path = pack(tmp_path / "a.cola", Codec(model))
    with Archive(path, Codec(model)) as archive:
        data, end = path.read_bytes(), archive.manifest.end
        damaged = dump_manifest(replace(archive.manifest, code_bytes=16))
    path.write_bytes(data[:end] + damaged)
    with Archive(path, Codec(model)) as archive, pytest.raises(FormatError, match="16 bytes"):
        archive.search("anything")
    manifest = msgpack.unpackb(damaged[: -FOOTER.size])
    assert manifest["code_bytes"] == 16


def test_context_is_for_what_networks_code_and_for_queries(model: Model) -> None:
    parts = [[text.encode() for text in TEXTS]]

    def codes(codec: Codec, layers: tuple[str, ...], preset: str = "small") -> bytes:
        return codec.encode_blocks(parts, layers, preset)[0].layers[SEARCH]

    own, never, always = (Codec(model, context=context) for context in (None, False, True))
    with_gist, without = codes(own, (SEARCH, GIST)), codes(own, (SEARCH, PLAIN), FAST)
    assert with_gist != without
    assert codes(always, (SEARCH, PLAIN), FAST) == codes(always, (SEARCH,)) == with_gist
    assert codes(never, (SEARCH, GIST)) == codes(own, (SEARCH,)) == without
    assert np.array_equal(own.vectors(TEXTS), never.vectors(TEXTS))


def test_models_of_several_sizes_are_kept_and_loaded(
    config: ModelConfig, tiny_vae: TextVAE, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    search = search_rows(config)
    identity = save_pretrained(
        tmp_path,
        config=config,
        tokenizer=tiny_tokenizer,
        vae=tiny_vae,
        search=search,
        prior=DiT.for_text(config),
        card="",
        figures={},
    )
    loaded = load(tmp_path)
    assert loaded.id == identity and loaded.config == config
    for size, book in search.codebooks.items():
        assert np.array_equal(loaded.codebooks[size], book.astype(np.float16).astype(np.float32))
    source, archive = tmp_path / "texts.txt", tmp_path / "a.cola"
    source.write_text("\n".join(TEXTS))
    options = ["--format", "lines", "--layers", "search", "--model", str(tmp_path), "-o", str(archive)]
    assert main(["pack", str(source), "--code-bytes", "7", *options]) == 2
    assert main(["pack", str(source), "--code-bytes", "8", *options]) == 0
    with Archive(archive, Codec(loaded)) as packed:
        assert packed.manifest.code_bytes == LARGE_CODES


@pytest.mark.parametrize("value", [[], [0], [True], "24", 24, [4, "8"], [1 << 21]])
def test_hostile_sizes(value: object) -> None:
    body = json.loads(ModelConfig("x").to_json()) | {"code_sizes": value}
    with pytest.raises(ModelError, match="code_sizes"):
        ModelConfig.from_json(json.dumps(body))


@pytest.mark.parametrize("sizes", [(8,), (8, 4), (4, 4), (4, 5)])
def test_sizes_that_fit_no_vector_or_no_default(config: ModelConfig, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"code_sizes|codes of"):
        coding_shapes(replace(config, code_sizes=sizes))
