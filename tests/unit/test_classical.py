"""zstd frames with and without a dictionary, and the dictionary's training."""

from __future__ import annotations

import random

import pytest

from colazip.classical import RAW, ZSTD, ZSTD_DICTIONARY, ClassicalCoder
from colazip.cli.options import preset_option
from colazip.demo import handbook
from colazip.errors import FormatError
from colazip.presets import PRESETS
from colazip.train.dictionary import train_dictionary

TEXTS = [passage.text for passage in handbook()]


def test_a_dictionary_helps_with_text_like_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    dictionary = train_dictionary(TEXTS[1::2], 8 << 10)
    assert dictionary is not None and len(dictionary) <= 8 << 10
    coder, bare = ClassicalCoder(dictionary), ClassicalCoder()
    text = TEXTS[0].encode()
    (kind, frame), (bare_kind, bare_frame) = coder.encode(text), bare.encode(text)
    assert (kind, bare_kind) == (ZSTD_DICTIONARY, ZSTD)
    assert len(frame) < len(bare_frame)
    assert coder.encode(text, dictionary=False) == (ZSTD, bare_frame)
    assert coder.decode(kind, frame, len(text)) == coder.decode(ZSTD, bare_frame, len(text)) == text
    with pytest.raises(FormatError):
        bare.decode(kind, frame, len(text))
    assert capsys.readouterr().err == ""


def test_too_little_text_gives_no_dictionary_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_dictionary(["short"], 1024) is None
    assert capsys.readouterr().err.count("\n") == 1


def test_what_zstd_does_not_shrink_stays_raw() -> None:
    noise = random.Random(0).randbytes(1000)
    assert ClassicalCoder().encode(noise) == (RAW, noise)


def test_frames_are_bounded() -> None:
    coder = ClassicalCoder()
    kind, frame = coder.encode(bytes(10_000))
    for wrong in (
        lambda: coder.decode(kind, frame, 9_999),
        lambda: coder.decode(kind, frame + b"\0", 10_000),
        lambda: coder.decode(kind, frame[:-1], 10_000),
        lambda: coder.decode(RAW, b"abc", 2),
        lambda: coder.decode(3, b"abc", 10),
    ):
        with pytest.raises(FormatError):
            wrong()
    with pytest.raises(ValueError, match="dictionary"):
        ClassicalCoder(b"not one")


def test_the_command_offers_every_preset() -> None:
    @preset_option
    def command() -> None: ...

    (option,) = command.__click_params__  # type: ignore[attr-defined]
    assert list(option.type.choices) == list(PRESETS)
