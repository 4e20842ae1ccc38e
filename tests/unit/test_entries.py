"""The prior over entries of a codebook: cached blocks equal the training pass, what is known is kept, and it
learns who stands beside whom."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from colazip.config import StackConfig
from colazip.errors import UsageError
from colazip.nn.dit import DiT, History, knowledge
from colazip.nn.entries import NOWHERE, EntryDiT
from colazip.prior import Prior
from colazip.sampling import Sampling
from colazip.train.entries import Telling, draw_known, entry_error

ENTRIES, PARTS = 12, 2


def codebook() -> Tensor:
    angle = torch.arange(ENTRIES) * (2 * torch.pi / ENTRIES)
    return torch.stack([angle.cos(), angle.sin()], -1)


def network(seed: int = 0) -> EntryDiT:
    torch.manual_seed(seed)
    made = EntryDiT(codebook(), PARTS, StackConfig(32, 2, 2), 4, 8)
    made.deviation.fill_(0.7)
    return made


def random_network() -> EntryDiT:
    """Random weights, those included that training starts at zero."""
    made = network().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False)


def telling(blockwise: float = 0.3) -> Telling:
    """Entries are told by halves of the codebook, or by thirds."""
    sets = torch.zeros(6, ENTRIES, dtype=torch.bool)
    at = torch.arange(ENTRIES)
    sets[0] = True
    sets[1 + at // 6, at] = True
    sets[3 + at // 4, at] = True
    said = torch.stack([ENTRIES + 1 + at // 6, ENTRIES + 3 + at // 4])
    return Telling(said, sets, blockwise=blockwise)


def rounds(count: int) -> Tensor:
    """Sequences that count up from anywhere, round the circle: int64 [count, 6, PARTS]."""
    return (
        (torch.randint(ENTRIES, (count, 1)) + torch.arange(6 * PARTS)).remainder(ENTRIES).view(count, 6, -1)
    )


@lru_cache(maxsize=1)
def counting_prior() -> Prior:
    made = network(1)
    optimizer = torch.optim.AdamW(made.parameters(), lr=4e-3)
    for _ in range(250):
        entries = rounds(32)
        error, count = entry_error(made, entries, torch.ones_like(entries, dtype=torch.bool), telling())
        (error / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Prior(made.requires_grad_(False))


@pytest.mark.parametrize("told", [False, True])
def test_cached_blocks_equal_the_whole_sequence(told: bool) -> None:
    made = random_network()
    clean = made.places()[rounds(2)].flatten(-2)[:, :6]
    noisy = torch.randn(clean.shape)
    known = knowledge(clean, torch.full_like(clean, 0.4)) if told else None
    t = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.7, 0.7]).expand(2, -1)
    everything = torch.ones(2, 6, dtype=torch.bool)
    whole = made(noisy, t, clean, everything, torch.ones(2, dtype=torch.bool), known)
    past, steps = History(made.layers), []
    for time, at in ((0.2, slice(0, 4)), (0.7, slice(4, 6))):
        steps.append(made.velocity(noisy[:, at], time, past, None if known is None else known[:, at]))
        made.finish(clean[:, at], past)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-4)


def test_what_is_known_is_kept() -> None:
    prior, entries = Prior(random_network()), rounds(1)[0].numpy()
    values = codebook().numpy()[entries].reshape(len(entries), -1)
    (drawn,) = prior.denoise([values], 0.3, Sampling(2))
    assert (np.abs(drawn - values) <= 0.3 + 1e-5).all()
    missing = np.arange(len(values)) % 2 == 0
    (filled,) = prior.infill([values], [missing], Sampling(2))
    assert np.array_equal(filled[~missing], values[~missing]) and not np.array_equal(filled, values)


def test_chances_are_of_what_is_possible() -> None:
    prior, telling_ = Prior(random_network()), telling()
    known = telling_.said[1][rounds(1)[0]].numpy()
    known[0] = ENTRIES
    known[1, 0], known[-1, 1] = 5, NOWHERE
    (logs,) = prior.chances([known], telling_.members.numpy())
    assert logs.shape == ((known >= ENTRIES).sum(), ENTRIES)
    assert np.allclose(np.exp2(logs).sum(1), 1.0, atol=1e-5)
    sets = telling_.members.numpy()[known[known >= ENTRIES] - ENTRIES]
    assert (np.exp2(logs)[~sets] < 1e-6).all()


def test_a_prior_over_values_has_no_chances() -> None:
    prior = Prior(DiT(4, StackConfig(32, 1, 2), 4))
    entries, members = [np.zeros((1, 2), np.int64)], np.ones((1, ENTRIES), bool)
    for use in (
        lambda: next(prior.chances(entries, members)),
        lambda: prior.name(entries, members),
        lambda: prior.told_by_the_rest(entries),
    ):
        with pytest.raises(UsageError, match="no entries"):
            use()


def test_padding_changes_nothing() -> None:
    prior, entries = Prior(random_network()), rounds(1)[0]
    values = codebook().numpy()[entries].reshape(len(entries), -1)
    reach = [np.full_like(v, 0.4) for v in (values, values[:3])]
    alone = prior.denoise([values[:3]], reach[1:], Sampling(2, seed=0))[0]
    together = prior.denoise([values[:3], values], reach[::-1], Sampling(2, seed=0))[0]
    assert np.allclose(alone, together, atol=1e-4)


def test_what_is_told() -> None:
    torch.manual_seed(0)
    entries, said = rounds(400), telling().said
    real = torch.ones_like(entries, dtype=torch.bool)
    real[:, -1, 1] = False
    known = draw_known(entries, real, telling())
    assert ((known == NOWHERE) == ~real).all()
    options = torch.stack([entries, *(s[entries] for s in said), torch.full_like(entries, ENTRIES)])
    assert ((known == options).any(0) | ~real).all()
    lost = (known == ENTRIES) & real
    assert 0.3 < lost[real].float().mean() < 0.5
    whole, single = lost.all(-1)[:, :-1].any(1), (lost.any(-1) & ~lost.all(-1))[:, :-1].any(1)
    assert whole.float().mean() > 0.5 and single.float().mean() > 0.2  # vectors go missing, and single parts
    assert 0.1 < (~lost.flatten(1).any(1)).float().mean() < 0.35


def test_it_learns_the_order() -> None:
    prior, told = counting_prior(), telling()
    torch.manual_seed(5)
    entries = rounds(20).numpy()
    right = []
    for one in entries:
        known = told.said[1].numpy()[one]
        known[0], known[3] = one[0], ENTRIES
        (logs,) = prior.chances([known], told.members.numpy())
        right.append(logs.argmax(1) == one[known >= ENTRIES])
    assert np.concatenate(right).mean() > 0.9
    values = codebook().numpy()[entries].reshape(len(entries), 6, -1)
    rng = np.random.default_rng(0)
    mixed = np.stack([v[rng.permutation(6)] for v in values])
    assert (prior.score(list(values), draws=3) > prior.score(list(mixed), draws=3)).mean() > 0.9
    more = prior.generate([v[:4] for v in values], 2, Sampling(4))
    near = np.stack(more).reshape(-1, 2) @ codebook().numpy().T
    assert (near.argmax(1) == entries[:, 4:].reshape(-1)).mean() > 0.6


def test_it_names_what_is_missing() -> None:
    prior, members = counting_prior(), telling().members.numpy()
    torch.manual_seed(6)
    entries = list(rounds(20).numpy())
    known = [one.copy() for one in entries]
    for one in known:
        one[2], one[5, 1] = ENTRIES, NOWHERE
    named = prior.name(known, members)
    assert np.mean([n[2] == e[2] for n, e in zip(named, entries, strict=True)]) > 0.9
    told = known[0] != ENTRIES
    assert np.array_equal(named[0][told], known[0][told])
    commonest = int(prior.network.common.argmax())
    assert (prior.name(known, members, least=1.1)[0][2] == commonest).all()
    values = codebook().numpy()[entries[0]].reshape(6, -1)
    (filled,) = prior.infill([values], [np.arange(6) == 2])
    assert np.allclose(filled[2].reshape(PARTS, -1), codebook().numpy()[named[0][2]], atol=1e-6)


def test_parts_tell_one_another() -> None:
    prior = counting_prior()
    torch.manual_seed(7)
    entries = rounds(1)[0].numpy()
    longer = np.concatenate([entries, np.full_like(entries[:1], NOWHERE)])
    told, padded = prior.told_by_the_rest([entries, longer], 4)
    assert told == pytest.approx(padded, abs=0.3) and -1.0 < told <= 0.0
    assert prior.told_by_the_rest([entries[:0]]) == 0.0
    (score,) = prior.score([codebook().numpy()[entries].reshape(6, -1)], draws=4)
    assert score == pytest.approx(told / 2, abs=1e-4)


def test_guidance_where_there_is_a_history_only() -> None:
    prior = Prior(random_network())
    width = prior.network.channels
    known = np.random.default_rng(0).standard_normal((8, width)).astype(np.float32)
    guided = Sampling(1, guidance=3.0)
    for call in (
        lambda: prior.denoise([known], 0.1, guided),
        lambda: prior.variants([known], 0.5, guided),
    ):
        with pytest.raises(UsageError, match="hears a whole text at once"):
            call()
    plain = prior.generate([known], 4, Sampling(1))[0]
    assert not np.allclose(prior.generate([known], 4, guided)[0], plain)


def test_draws_of_a_block_are_those_of_the_whole() -> None:
    """With one block and one round at temperature 0 they are the likeliest, and finished blocks are heard as
    training has them."""
    made = random_network()
    prior, members = Prior(made), telling().members
    known = rounds(1)[0][:4]
    known[2], known[3, 0] = ENTRIES, ENTRIES + 2
    logs = made.chances(known[None], members)
    assert torch.allclose(made.block_chances(known[None], members, History(made.layers)), logs, atol=1e-5)
    (drawn,) = prior.draw([known.numpy()], members.numpy(), Sampling(1, temperature=0.0))
    assert np.array_equal(drawn[known.numpy() >= ENTRIES], logs.argmax(1).numpy())
    told = known.numpy() < ENTRIES
    assert np.array_equal(drawn[told], known.numpy()[told]) and members[2, drawn[3, 0]]
    first, second, by_entries = rounds(1)[0][None, :4], History(made.layers), History(made.layers)
    made.finish(made.places()[first].flatten(-2), second)
    made.finish_entries(first, by_entries)
    for a, b in zip(second.keys, by_entries.keys, strict=True):
        assert a is not None and b is not None and torch.allclose(a, b, atol=1e-5)


def test_draws_go_on_in_order() -> None:
    prior, members = counting_prior(), telling().members.numpy()
    torch.manual_seed(8)
    known = [one.copy() for one in rounds(20).numpy()]
    expected = [one.copy() for one in known]
    for one in known:
        one[3, 1], one[4:], one[5, 1] = ENTRIES, ENTRIES, NOWHERE
    drawn = prior.draw(known, members, Sampling(8, temperature=0.5))
    right = [d[4, 0] == e[4, 0] for d, e in zip(drawn, expected, strict=True)]
    assert np.mean(right) > 0.7
    assert all(np.array_equal(d[:3], k[:3]) and d[5, 1] == NOWHERE for d, k in zip(drawn, known, strict=True))
    again = prior.draw(known, members, Sampling(8, temperature=0.5))
    assert np.array_equal(np.stack(drawn), np.stack(again))
    other = prior.draw(known, members, Sampling(8, temperature=3.0, seed=1))
    assert not np.array_equal(np.stack(drawn), np.stack(other))
    with pytest.raises(UsageError, match="over values"):
        Prior(DiT(4, StackConfig(32, 1, 2), 4)).draw(known, members)
