"""The DiT prior: cached blocks equal the training pass, solvers have their order, and samples keep to what is
known. Most of it on waves that a small prior learns in seconds: nothing in it knows of text."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from colazip.config import StackConfig
from colazip.errors import UsageError
from colazip.nn.dit import DiT, History, knowledge
from colazip.prior import Prior, integrate
from colazip.sampling import Sampling
from colazip.train.prior import PriorSchedule, draw_knowledge, flow_loss

QUICK = Sampling(steps=2)
LEVEL = 4  # whole numbers within +-LEVEL are what some priors here are over


@lru_cache(maxsize=1)
def random_network() -> DiT:
    """Random weights, those included that training starts at zero, where every architecture looks right."""
    torch.manual_seed(0)
    network = DiT(8, StackConfig(32, 2, 2), 8).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.deviation.copy_(torch.linspace(1.3, 2.7, 8))  # nothing comes back by chance alone
    return network.requires_grad_(False)


def waves(count: int, seed: int) -> np.ndarray:
    """Points that run round a circle, each sequence at its own pace: float32 [count, 24, 2]."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 6.3, (count, 1)) + rng.uniform(0.2, 0.5, (count, 1)) * np.arange(24)
    return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)


@lru_cache(maxsize=1)
def wave_prior() -> Prior:
    torch.manual_seed(1)
    network = DiT(2, StackConfig(32, 2, 2), 8)
    network.deviation.fill_(0.7)
    schedule, rows = PriorSchedule(200), torch.from_numpy(waves(2048, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    valid = torch.ones(48, 24, dtype=torch.bool)
    for step in range(schedule.steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / schedule.steps)
        batch = rows[torch.randint(len(rows), (48,))]
        cells = batch.round(), torch.full_like(batch, 0.5)
        flow_loss(network, batch, valid, schedule, [cells]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Prior(network.requires_grad_(False))


# -- the network


@pytest.mark.parametrize("told", [False, True])
def test_cached_blocks_equal_the_whole_sequence(told: bool) -> None:
    network = random_network()
    block, channels = network.block, network.channels
    clean, noisy = torch.randn(2, 3 * block - 2, channels), torch.randn(2, 3 * block - 2, channels)
    known = knowledge(clean, torch.rand(clean.shape)) if told else None
    t = torch.tensor([0.2, 0.5, 0.9]).repeat_interleave(block)[: clean.shape[1]].expand(2, -1)
    with torch.inference_mode():
        everything = torch.ones(2, clean.shape[1], dtype=torch.bool)
        whole = network(noisy, t, clean, everything, torch.ones(2, dtype=torch.bool), known)
        past, steps = History(network.layers), []
        for i, lo in enumerate(range(0, clean.shape[1], block)):
            at = slice(lo, lo + block)
            part = None if known is None else known[:, at]
            steps.append(network.velocity(noisy[:, at], (0.2, 0.5, 0.9)[i], past, part))
            network.finish(clean[:, at], past)
    assert torch.allclose(whole, torch.cat(steps, 1), atol=1e-4)


def test_velocity_does_not_see_later_blocks() -> None:
    network = random_network()
    block = network.block
    clean, noisy = torch.randn(1, 2 * block, network.channels), torch.randn(1, 2 * block, network.channels)
    t, valid = torch.full((1, 2 * block), 0.5), torch.ones(1, 2 * block, dtype=torch.bool)
    history = torch.ones(1, dtype=torch.bool)
    with torch.inference_mode():
        before = network(noisy, t, clean, valid, history)
        clean[:, block:] += 1.0
        noisy[:, block:] += 1.0
        after = network(noisy, t, clean, valid, history)
    assert torch.equal(before[:, :block], after[:, :block])
    assert not torch.allclose(before[:, block:], after[:, block:])


def test_a_prior_of_an_earlier_release_still_loads() -> None:
    torch.manual_seed(0)
    new = DiT(8, StackConfig(32, 1, 2), 8)
    old = {k: v for k, v in random_network().state_dict().items() if not k.startswith(("bend", "blocks.1"))}
    new.load_state_dict(new.completed(old))
    assert torch.equal(new.enter.weight, old["enter.weight"])


def test_knowledge_of_nothing_is_nothing() -> None:
    centre = torch.tensor([[3.0, -1.0]])
    assert torch.equal(knowledge(centre, torch.full((1, 2), torch.inf)), torch.zeros(1, 4))
    assert torch.equal(knowledge(centre, torch.zeros(1, 2)), torch.tensor([[1.0, 1.0, 3.0, -1.0]]))


def test_what_training_tells() -> None:
    torch.manual_seed(0)
    vectors = torch.randint(-4, 5, (400, 10, 2)).float()
    cells = (vectors + 0.5, torch.full_like(vectors, 1.5)), (vectors - 0.5, torch.full_like(vectors, 2.5))
    centre, reach = draw_knowledge(vectors, 0.5, cells)
    assert ((vectors - centre).abs()[reach.isfinite()] <= reach[reach.isfinite()]).all()
    told = reach.isfinite().any(2).any(1).float().mean()
    assert 0.4 < told < 0.55
    assert {0.0, 1.5, 2.5, float("inf")} == set(reach.unique().tolist())
    for row in reach:  # one way of knowing a sequence
        assert len(set(row[row.isfinite()].tolist())) <= 1
    assert draw_knowledge(vectors, 0.0, ())[1].isinf().all()


def test_what_is_known_is_no_part_of_the_loss() -> None:
    """Cells without extent tell everything: nothing is left to learn from."""
    vectors, valid = torch.randn(200, 9, 8), torch.ones(200, 9, dtype=torch.bool)
    schedule = PriorSchedule(1, informed=1.0)
    torch.manual_seed(0)
    sure = [(vectors, torch.zeros_like(vectors))] * 50
    told = float(flow_loss(random_network(), vectors, valid, schedule, sure))
    torch.manual_seed(0)
    assert draw_knowledge(vectors, 1.0, sure)[1].isinf().float().mean() < 0.5
    assert np.isfinite(told) and told > 0
    nothing = torch.zeros(200, 9, dtype=torch.bool)
    assert float(flow_loss(random_network(), vectors, nothing, schedule, sure)) == 0.0


# -- solvers


def gaussian(x: Tensor, t: float) -> Tensor:
    """Clean value foreseen for data from N(2, 0.5): the flow is linear, and takes x to 2 + x / 2."""
    mean, variance = 2.0, 0.25
    return mean + t * variance / ((1 - t) ** 2 + t * t * variance) * (x - t * mean)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2)])
def test_solvers_have_their_order(solver: str, order: int) -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = [
        float((integrate(gaussian, x, start=0.0, steps=n, solver=solver) - (2 + x / 2)).abs().max())
        for n in (64, 128)
    ]
    assert errors[1] < errors[0] < 0.1
    assert np.log2(errors[0] / errors[1]) > order - 0.25


def test_a_solver_starts_where_it_is_told() -> None:
    x = torch.tensor([0.3, 1.0], dtype=torch.float64)
    half = x * (0.25 + 0.25 * 0.25) ** 0.5 + 1.0  # where the flow has x at time 1 / 2
    done = integrate(gaussian, half, start=0.5, steps=64, solver="midpoint")
    assert torch.allclose(done, 2 + x / 2, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"steps": 10**6}, {"solver": "rk9"}, {"guidance": float("nan")}, {"seed": -1}],
)
def test_sampling_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Sampling(**options)  # type: ignore[arg-type]


# -- what samples keep to


class Watched(DiT):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(8, StackConfig(32, 2, 2), 8)
        self.load_state_dict(random_network().state_dict())
        self.seen: list[tuple[Tensor, float]] = []

    def velocity(self, x: Tensor, t: float, *rest: object) -> Tensor:
        self.seen.append((x, t))
        return super().velocity(x, t, *rest) * 10  # far outside of any cell


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_the_sample_stays_inside_its_cell_at_every_step(solver: str) -> None:
    network = Watched()
    rng = np.random.default_rng(0)
    levels = rng.integers(-LEVEL, LEVEL + 1, (6, 8)).astype(np.float32)
    centre = np.round(levels / 3) * 3
    options = Sampling(4, solver)
    (drawn,) = Prior(network, grid=LEVEL).denoise([centre], 1.5, options)
    assert (np.abs(drawn - centre) <= 1.0).all() and (np.abs(drawn) <= LEVEL).all()
    assert np.array_equal(drawn, np.round(drawn))
    noise, _ = network.seen[0]
    assert len(network.seen) == (4 if solver == "euler" else 8)
    for x, t in network.seen[1:]:
        clean = (x - (1 - t) * noise) / t  # a mean of all clean vectors foreseen so far
        assert ((clean * network.deviation - torch.from_numpy(centre)).abs() <= 1.5 + 1e-3).all()


def test_a_fully_known_gist_comes_back() -> None:
    levels = np.random.default_rng(0).integers(-4, 5, (19, 8)).astype(np.float32)
    prior = Prior(random_network(), grid=LEVEL)
    assert np.array_equal(prior.denoise([levels], 0.5, QUICK)[0], levels)
    assert np.array_equal(prior.denoise([levels], 0.0, QUICK)[0], levels)


@given(st.integers(0, 40), st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_infill_keeps_what_is_known(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = rng.integers(-4, 5, (length, 8)).astype(np.float32)
    missing = rng.random(length) < 0.4
    (drawn,) = Prior(random_network(), grid=LEVEL).infill([levels], [missing], Sampling(1, "euler"))
    assert drawn.shape == levels.shape
    assert np.array_equal(drawn[~missing], levels[~missing])
    assert np.array_equal(drawn, np.round(drawn)) and (np.abs(drawn) <= LEVEL).all()


def test_a_batch_is_as_one_by_one() -> None:
    rng = np.random.default_rng(3)
    rows = [rng.standard_normal((n, 8)).astype(np.float32) for n in (3, 20, 0, 9)]
    prior = Prior(random_network())
    together = prior.variants(rows, 0.7, QUICK)
    for size in (1, 2):
        for a, b in zip(
            Prior(random_network(), batch_size=size).variants(rows, 0.7, QUICK), together, strict=True
        ):
            np.testing.assert_allclose(a, b, atol=2e-3)
    assert [len(r) for r in together] == [3, 20, 0, 9]


def test_generation_is_seeded() -> None:
    prior = Prior(random_network(), grid=LEVEL)
    beginning = np.random.default_rng(0).integers(-4, 5, (11, 8)).astype(np.float32)
    one, two, other = (prior.generate([beginning], 9, Sampling(2, seed=s))[0] for s in (1, 1, 2))
    assert one.shape == (9, 8)
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    twins = prior.generate([beginning, beginning], 9, QUICK)
    assert not np.array_equal(*twins)
    assert prior.generate([beginning[:0]], 3, QUICK)[0].shape == (3, 8)


def test_guidance_changes_what_has_a_history() -> None:
    prior = Prior(random_network())
    beginning = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    plain, guided = (prior.generate([beginning], 8, Sampling(2, guidance=g))[0] for g in (1.0, 3.0))
    assert not np.allclose(plain, guided)
    plain, guided = (prior.generate([beginning[:0]], 8, Sampling(2, guidance=g))[0] for g in (1.0, 3.0))
    np.testing.assert_allclose(plain, guided, atol=1e-3)


def test_strength_moves_vectors() -> None:
    prior, rows = wave_prior(), list(waves(16, 5))
    moved = [
        np.mean([np.abs(a - b).mean() for a, b in zip(prior.variants(rows, s, QUICK), rows, strict=True)])
        for s in (0.0, 0.2, 0.5, 1.0)
    ]
    assert moved[0] == 0.0 and moved == sorted(moved)


# -- what a trained prior knows


def test_infill_sees_both_sides() -> None:
    rows = list(waves(32, 7))
    missing = np.zeros(24, bool)
    missing[[2, 3, 11, 12, 20]] = True
    drawn = wave_prior().infill(rows, [missing] * 32, Sampling(8))
    error = np.mean([np.abs(d - r)[missing].mean() for d, r in zip(drawn, rows, strict=True)])
    nothing = np.mean([np.abs(r)[missing].mean() for r in rows])
    assert error < 0.5 * nothing


def test_denoising_beats_the_centres_of_the_cells() -> None:
    rows = list(waves(32, 8))
    centres = [np.round(r).astype(np.float32) for r in rows]
    drawn = wave_prior().denoise(centres, 0.5, Sampling(1))
    error = np.mean([np.square(d - r).mean() for d, r in zip(drawn, rows, strict=True)])
    assert error < 0.8 * np.mean([np.square(c - r).mean() for c, r in zip(centres, rows, strict=True)])


def test_score_ranks_real_above_shuffled() -> None:
    rng = np.random.default_rng(0)
    real = list(waves(40, 9))
    shuffled = [r[rng.permutation(24)] for r in real]
    prior = wave_prior()
    assert (prior.score(real) > prior.score(shuffled)).mean() >= 0.95
    np.testing.assert_allclose(prior.score(real), Prior(prior.network, batch_size=3).score(real), atol=1e-3)


# -- wrong calls


def test_wrong_calls() -> None:
    prior = Prior(random_network(), grid=LEVEL)
    good = np.zeros((4, 8), np.float32)
    for call in (
        lambda: prior.variants([np.zeros((4, 7), np.float32)], 0.5),
        lambda: prior.variants([good * np.nan], 0.5),
        lambda: prior.variants([good], 1.5),
        lambda: prior.infill([good], [np.zeros(3, bool)]),
        lambda: prior.denoise([good], -1.0),
        lambda: prior.denoise([good], [np.zeros((2, 8))]),
        lambda: prior.generate([good], 0),
        lambda: prior.score([good], draws=0),
        lambda: Prior(random_network(), batch_size=0),
    ):
        with pytest.raises(UsageError):
            call()
