"""What a training run would take, without training: parameters, memory a device, FLOPs a token, time.

Networks of the paper's kind are built on the meta device, where tensors have shapes and no contents. FLOPs
are those of one forward pass as PyTorch's counter sees them (products and attention), three times that where
weights are trained; recomputing activations is not counted, as is the custom where utilisation is stated.
Activations are the tensors that autograd would keep. The compression networks look at their data, so one
small batch is really computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from colazip.errors import UsageError
from colazip.nn.cola import Layer
from colazip.nn.cost import cost
from colazip.nn.dit import DiT
from colazip.nn.entries import EntryDiT
from colazip.nn.vae import TextVAE
from colazip.train.cola import ColaRecipe, StageSchedule
from colazip.train.cola_losses import LOGIT_ROWS, Stage1, Stage2
from colazip.train.losses import compute
from colazip.train.recipes import Recipe

# Dense bfloat16 FLOPs a second by data sheet.
PEAK = {"a100": 312e12, "h100": 989e12, "h200": 989e12, "b200": 2250e12}


@dataclass(frozen=True)
class StagePlan:
    """One stage as each of its devices sees it. Memory in bytes; tokens are those of the whole run, padding
    included.

    state: weights, gradients, optimizer and average. gathered: weights that are whole for a moment though
    sharded, or their low-precision copies. logits: of the tokens whose logits are in memory at once.
    """

    name: str
    parameters: dict[str, int]
    tokens: int
    flops_a_token: float
    state: int
    gathered: int
    activations: int
    logits: int

    @property
    def memory(self) -> int:
        return self.state + self.gathered + self.activations + self.logits

    @property
    def flops(self) -> float:
        return self.tokens * self.flops_a_token

    def seconds(self, gpus: int, gpu: str, utilisation: float) -> float:
        """Expected time at a share `utilisation` of the devices' peak."""
        return self.flops / (gpus * PEAK[gpu] * utilisation)


def plan(recipe: Recipe | ColaRecipe, gpus: int) -> list[StagePlan]:
    """The stages of a recipe in order, but for the search head, which takes minutes.

    Raises UsageError if it can't run on that many devices.
    """
    if isinstance(recipe, Recipe):
        if gpus != 1:
            raise UsageError(f"recipe {recipe.model.name!r} trains on one GPU; say --gpus 1")
        return [_compression_vae(recipe), _compression_prior(recipe)]
    for schedule in (recipe.stage1, recipe.stage2):
        if schedule.micro_batches % gpus:
            raise UsageError(
                f"{gpus} GPUs can't share {schedule.micro_batches} micro-batches a step;"
                " name a number that divides them"
            )
    return [
        _cola_stage(Stage1, "stage 1: Text VAE", recipe, recipe.stage1, gpus),
        _cola_stage(Stage2, "stage 2: VAE and prior", recipe, recipe.stage2, gpus),
    ]


def _cola_stage(
    kind: type[Stage1] | type[Stage2],
    name: str,
    recipe: ColaRecipe,
    schedule: StageSchedule,
    gpus: int,
) -> StagePlan:
    model, parallel = recipe.model, recipe.parallel
    low = torch.bfloat16 if parallel.precision == "bfloat16" else torch.float32
    rows = max(1, schedule.tokens // model.context)
    with torch.device("meta"):
        module = kind(model, recipe.weights).to(low)
        tokens = torch.zeros(rows, model.positions * model.patch, dtype=torch.int64)
        counts = torch.full((rows,), model.context)
    layers = [m for m in module.modules() if isinstance(m, Layer)]
    width = 2 if low is torch.bfloat16 else 4
    parts = _count(module)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters()) - trained
    sharded = parallel.sharding == "fsdp" and gpus > 1
    inner = sum(p.numel() for layer in layers for p in layer.parameters())
    largest = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    if sharded:
        # What is outside the layers stays whole from the forward to the backward pass, weights and gradients;
        # of the layers one is at work and the next one on its way.
        gathered = width * (2 * (trained + frozen - inner) + 4 * largest)
    else:
        gathered = width * (trained + frozen) if width == 2 else 0
    return StagePlan(
        name,
        parts,
        schedule.steps * schedule.micro_batches * rows * model.context,
        _cola_flops(module, tokens, counts),
        (20 * trained + 4 * frozen) // (gpus if sharded else 1),
        gathered,
        _activations(module, layers, lambda: module(tokens, counts, 0), recompute=parallel.recompute),
        min(LOGIT_ROWS, rows * model.context) * model.vocabulary * (2 * width + 2 * 4),
    )


def _cola_flops(module: Stage1 | Stage2, tokens: Tensor, counts: Tensor) -> float:
    """FLOPs a token of the rows int64 [B, T], on the meta device; counts int64 [B]."""
    flops = 3.0 * forward_flops(lambda: module(tokens, counts, 0))
    if isinstance(module, Stage2):  # the reference is not trained: no backward pass
        flops -= 2.0 * forward_flops(lambda: module.reference(tokens))
    return flops / tokens.numel()


def flops_a_token(recipe: Recipe | ColaRecipe, stage: str) -> float:
    """Training FLOPs a token of a stage: `vae` of a compression recipe, `stage1` or `stage2` of one of the
    paper's."""
    if isinstance(recipe, Recipe):
        assert stage == "vae"
        return 6.0 * cost(recipe.model, recipe.model.segment).pack / recipe.model.patch
    with torch.device("meta"):
        module = (Stage1 if stage == "stage1" else Stage2)(recipe.model, recipe.weights)
        tokens = torch.zeros(1, recipe.model.positions * recipe.model.patch, dtype=torch.int64)
        return _cola_flops(module, tokens, torch.full((1,), recipe.model.context))


def _count(module: nn.Module) -> dict[str, int]:
    return {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}


def forward_flops(forward: Callable[[], object]) -> float:
    """FLOPs of products and attention in a call, on tensors with or without contents."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return float(counter.get_total_flops())


class _Kept:
    """Bytes of the tensors that autograd keeps within a `with`; parameters are there anyway."""

    def __init__(self, module: nn.Module) -> None:
        self.known = {p.untyped_storage()._cdata for p in module.parameters()}
        self.bytes = 0
        self._alive: list[Tensor] = []  # or an address could be taken for one seen before
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self._alive.append(tensor)
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> _Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def _activations(
    module: nn.Module, layers: list[Layer], forward: Callable[[], object], *, recompute: bool
) -> int:
    """Bytes kept from the forward to the backward pass."""
    inputs: list[int] = []

    def before(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            inputs.append(arguments[0].numel() * arguments[0].element_size())

    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    for layer in layers:
        layer.recompute = False
    with _Kept(module) as full:
        forward()
    if not recompute:
        for handle in handles:
            handle.remove()
        return full.bytes
    inputs.clear()
    for layer in layers:
        layer.recompute = True
    with _Kept(module) as outside:
        forward()
    for handle in handles:
        handle.remove()
    # While a layer is recomputed, all that it keeps is there: about an even share of what all would keep.
    return outside.bytes + sum(inputs) + (full.bytes - outside.bytes) // max(1, len(inputs))


def _compression_vae(recipe: Recipe) -> StagePlan:
    config, schedule = recipe.model, recipe.vae
    model = TextVAE(config)
    length = config.segment * config.patch
    tokens, counts = torch.randint(1, config.vocabulary, (1, length)), torch.tensor([length])
    guesses = torch.zeros(2, 1, length, dtype=torch.int64)
    with _Kept(model) as kept:
        compute(model, tokens, counts, guesses, 0, fast=True)
    weights_count = sum(p.numel() for p in model.parameters())
    inner = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and ".stack." in n)
    return StagePlan(
        "Text VAE",
        _count(model),
        schedule.steps * schedule.micro_batches * schedule.patches * config.patch,
        flops_a_token(recipe, "vae"),
        16 * weights_count - 4 * inner,  # Muon keeps one moment, AdamW two
        0,
        kept.bytes * schedule.patches // config.segment,
        0,
    )


def _compression_prior(recipe: Recipe) -> StagePlan:
    config, schedule = recipe.model, recipe.prior
    with torch.device("meta"):
        prior: DiT | EntryDiT = DiT.for_text(config)
        if config.prior_features:
            prior = EntryDiT.for_text(config, torch.zeros(config.vocabulary, config.channels))
        entered = torch.zeros(1, config.segment, config.patch, config.prior_features + 1)
        latents = torch.zeros(1, config.segment, config.patch * config.channels)
        times = torch.zeros(1, config.segment)
        valid, history = torch.ones(1, config.segment, dtype=torch.bool), torch.ones(1, dtype=torch.bool)

    def forward() -> object:
        if isinstance(prior, EntryDiT):
            return prior.queries(entered, times) @ prior.table.T
        return prior(latents, times, latents, valid, history)

    with _Kept(prior) as kept:
        forward()
    return StagePlan(
        "prior",
        {"prior": sum(p.numel() for p in prior.parameters())},
        schedule.steps * schedule.micro_batches * schedule.patches * config.patch,
        3.0 * forward_flops(forward) / config.segment / config.patch,
        16 * sum(p.numel() for p in prior.parameters()),
        0,
        kept.bytes * schedule.patches // config.segment,
        0,
    )
