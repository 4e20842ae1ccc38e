"""Model folders: saved, loaded, refused when damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from colazip.codec import Codec
from colazip.errors import ColazipError, InputError, ModelError, UsageError
from colazip.pretrained import DEFAULT, describe, load, resolve
from colazip.train.pipeline import run
from colazip.train.recipes import tiny
from tests.tiny_model import passages, tiny_codec, tiny_folder, tiny_model, write_corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder(), tmp_path / "model"))


def test_loading_twice_gives_the_same_id_and_bytes() -> None:
    again = load(tiny_folder())
    assert again.id == tiny_model().id
    assert type(tiny_codec())(again).encode(passages()[:2]) == tiny_codec().encode(passages()[:2])


def test_the_name_and_the_prior_do_not_change_the_id(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["name"] = "renamed"
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).id == tiny_model().id


def test_describe_needs_no_network_and_has_the_card(folder: Path) -> None:
    facts = describe(folder)
    assert facts["id"] == tiny_model().id
    assert facts["figures"]["vae"]["total_bpb"] > 0
    assert "| figure | value |" in facts["card"]
    assert str(folder.parent) not in facts["card"]


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load(folder)
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(folder / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "noise"])
def test_damage_is_a_model_error(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    late = len(whole) * 3 // 4  # behind the prior, which decides no bit and which nothing checks
    noise = bytes(b ^ 0xFF for b in whole[late : late + 8])
    broken = {"empty": b"", "half": whole[:middle], "noise": whole[:late] + noise + whole[late + 8 :]}
    path.write_bytes(broken[damage])
    with pytest.raises(ModelError):
        load(folder)


def test_a_dictionary_belongs_to_the_model(folder: Path) -> None:
    path = folder / "dictionary.bin"
    whole = path.read_bytes()
    assert load(folder).dictionary == whole
    for damaged in (b"", b"no dictionary", whole[:100], whole[:-1] + b"#", whole + bytes(2 << 20), None):
        path.unlink(missing_ok=True)
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(ModelError):
            load(folder)


def test_axes_are_checked(folder: Path) -> None:
    """They decide no bit of an archive, so the model's id says nothing of them."""
    path = folder / "axes.npy"
    whole = path.read_bytes()
    model = load(folder)
    axes = model.axes
    assert axes is not None and axes.shape == (model.config.vector,) * 2
    assert np.allclose(axes.astype(float) @ axes.astype(float).T, np.eye(len(axes)), atol=0.01)
    for wrong in (axes[:-1], axes.astype(np.float32), np.full_like(axes, np.nan), np.array([{}, 1])):
        np.save(path, wrong, allow_pickle=True)
        with pytest.raises(ModelError, match=r"axes\.npy"):
            load(folder)
    for damaged in (b"", whole[:30], whole[:-1], b"\x93NUMPY\x01\x00" + b"(" * 5000, bytes(17 << 20)):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"axes\.npy"):
            load(folder)
    path.unlink()
    assert load(folder).axes is None and load(folder).id == model.id
    with pytest.raises(UsageError, match=r"no axes\.npy"):
        Codec(load(folder)).vectors(["a text"], 3)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 8},
        {"channels": 1 << 30},
        {"embedding": -1},
        {"nonsense": 1},
        {"decoder": 5},
        {"encoder": {"width": 32, "layers": 1, "heads": 2}},  # of an earlier release
        {"details": 2},
        {"details": 17},
        {"slots": True},
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder: Path, change: dict[str, object]) -> None:
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError):
        load(folder)


def test_training_resumes_and_does_not_overwrite(tmp_path: Path) -> None:
    train, validation = write_corpus(tmp_path)
    first = run(tiny(), data=[train], validation=[validation], out=tmp_path / "run")
    again = run(tiny(), data=[train], validation=[validation], out=tmp_path / "run", resume=True)
    assert first == again
    with pytest.raises(InputError, match="--resume"):
        run(tiny(), data=[train], validation=[validation], out=tmp_path / "run")
    with pytest.raises(InputError, match="no such file"):
        run(tiny(), data=[tmp_path / "none.jsonl"], validation=[validation], out=tmp_path / "other")


def test_too_little_text_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("too short")
    with pytest.raises(ColazipError, match="add text"):
        run(tiny(), data=[path], validation=[path], out=tmp_path / "run")


def test_the_embedded_default_loads_and_stays_small() -> None:
    assert (DEFAULT / "weights.safetensors").stat().st_size <= 20_000_000
    model = load()
    assert model.id == describe()["id"]


def test_words_are_read_in_context_alike_by_all_implementations() -> None:
    model = load()
    units = np.random.default_rng(0).normal(size=(3, 40, model.config.vector)).astype(np.float32)
    valid = np.arange(40)[None] < np.array([40, 7, 1])[:, None]
    networks = model.search_encoder, model.quick_encoder, model.context_encoder
    first, *others = (network(units * valid[..., None], valid) for network in networks if network)
    assert len(others) == 2 and np.abs(first).max() > 0
    assert all(np.array_equal(first, other) for other in others)
