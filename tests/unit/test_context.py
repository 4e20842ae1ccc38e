"""The search encoder: both implementations give the same bits, whatever is beside a text."""

import numpy as np
import pytest
import torch

from colazip.config import EncoderConfig, ModelConfig
from colazip.context import _windows, summands
from colazip.nn import gpu_context
from colazip.nn.context import ContextEncoder
from colazip.nn.portable import ContextEncoder as PortableEncoder
from colazip.nn.portable import Weights
from colazip.nn.quick import int8_product
from colazip.pretrained import _export
from colazip.vectors import RowSums, assign_codes, pack_rows, unit

CONFIG = EncoderConfig(width=32, layers=2, heads=4, hidden=64)
WIDTH = 24
TOKENS = [b"", b" river", b"bank", b" mon", b"ey", b".", *(b" word%d" % i for i in range(40))]


def encoder(seed):
    torch.manual_seed(seed)
    own = ContextEncoder(WIDTH, CONFIG.width, CONFIG.layers, CONFIG.heads, CONFIG.hidden)
    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    return own


def networks():
    own = encoder(3)
    tensors = {n: v.numpy() for n, v in _export(own, "search.encoder.").items()}
    made = [PortableEncoder(CONFIG, Weights(tensors, "search.encoder.", *p)) for p in ((), (int8_product,))]

    def through_torch(units, valid):
        with torch.inference_mode():
            return own(torch.from_numpy(units), torch.from_numpy(valid)).numpy()

    return [through_torch, *made]


def rows():
    table = np.random.default_rng(0).standard_normal((len(TOKENS) + 64, WIDTH)).astype(np.float32) * 20
    return RowSums(*pack_rows(table), TOKENS, 64)


def texts():
    rng = np.random.default_rng(1)
    return [rng.integers(1, len(TOKENS), n) for n in (1, 2, 7, 0, 60, 300, 700, 5)]


def test_implementations_agree_bit_for_bit():
    found = [summands(rows(), network, texts(), 4) for network in networks()]
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_text_does_not_depend_on_its_neighbours():
    network = networks()[1]
    together = summands(rows(), network, texts(), 4)
    for text, expected in zip(texts(), together, strict=True):
        (alone,) = summands(rows(), network, [text], 4)
        assert np.array_equal(alone, expected)


def test_context_changes_what_a_word_adds():
    network, plain = networks()[1], rows()
    a, b = (np.array(t) for t in ([1, 2, 5, 6], [3, 4, 5, 6]))
    (first,), (second,) = (summands(plain, network, [t], 1) for t in (a, b))
    assert not np.array_equal(first[3], second[3])
    assert np.array_equal(plain.patches(a, 1)[3], plain.patches(b, 1)[3])
    assert np.isclose(np.linalg.norm(unit(first.sum(0, keepdims=True))), 1.0)


@pytest.mark.parametrize("context", [False, True])
def test_many_texts_at_once_have_the_same_sums(context, monkeypatch):
    """What a GPU runs, on the CPU here: texts end to end, windows of all of them in a batch."""
    network = encoder(4)
    monkeypatch.setattr(gpu_context, "_POSITIONS", 200)
    monkeypatch.setattr(gpu_context, "_ENTRIES", 100)
    some = [text for text in texts() if len(text)]

    def through_torch(units, valid):
        with torch.inference_mode():
            return network(torch.from_numpy(units), torch.from_numpy(valid)).numpy()

    plain = summands(rows(), through_torch, some, 4) if context else [rows().patches(t, 4) for t in some]
    every = np.concatenate(plain)
    spans = np.array([(0, 1), (0, len(every)), (1, 40), (30, 90), (len(every) - 1, len(every))])
    sums = gpu_context.DeviceSums(rows(), network, 4, torch.device("cpu"))
    with torch.inference_mode():
        found = sums(some, spans, context=context)
    assert np.array_equal(found, [every[lo:hi].sum(0) for lo, hi in spans])
    assert sums(some, spans[:0], context=context).shape == (0, WIDTH)


def test_codes_on_a_device_are_the_same():
    rng = np.random.default_rng(2)
    book = rng.standard_normal((6, 256, 4)).astype(np.float32)
    book[:, 100] = book[:, 50]  # as near: the first is taken
    vectors = rng.standard_normal((300, 24)).astype(np.float32)
    vectors[:20] = book[:, 100].reshape(-1)
    codes = gpu_context.assign_codes(vectors, book, torch.device("cpu"))
    assert np.array_equal(codes, assign_codes(vectors, book)) and (codes[:20] == 50).all()
    assert gpu_context.assign_codes(vectors[:0], book, torch.device("cpu")).shape == (0, 6)


def test_sums_are_exact_in_any_order():
    (found,) = summands(rows(), networks()[1], [texts()[6]], 4)
    assert np.array_equal(found * 256, np.rint(found * 256))


def test_windows_are_even_and_complete():
    for patches in (0, 1, 63, 64, 65, 128, 130, 256):
        windows = _windows(patches, 64)
        assert [p for lo, hi in windows for p in range(lo, hi)] == list(range(patches))
        assert all(0 < hi - lo <= 64 for lo, hi in windows)


def test_a_configuration_without_encoder_keeps_its_form():
    plain = ModelConfig("plain")
    assert "search_encoder" not in plain.to_json()
    assert ModelConfig.from_json(plain.to_json()) == plain
    other = ModelConfig("other", search_encoder=CONFIG)
    assert ModelConfig.from_json(other.to_json()) == other
