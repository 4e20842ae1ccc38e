"""How samples are drawn, from the diffusion prior or by the coder. No torch: commands read it before anything
heavy loads."""

from __future__ import annotations

import math
from dataclasses import dataclass

from colazip.errors import UsageError

SOLVERS = ("euler", "midpoint")
MAX_STEPS = 1000
MAX_GUIDANCE = 20.0
MAX_TEMPERATURE = 10.0
CODER, PRIOR = "coder", "prior"
WRITERS = (CODER, PRIOR)  # what lets a text go on, and says how likely one is


@dataclass(frozen=True)
class Sampling:
    """steps: of the solver, more are nearer to the flow; where a prior over entries goes on with a sequence,
    rounds a block. solver: `midpoint` evaluates the network twice a step and is of second order, `euler`
    once. guidance: 1 is the prior as it is; above, each block heeds what stands before it more. seed: the
    same one gives the same sample. temperature: of draws from probabilities, which are the coder's and those
    of a prior over entries that goes on; 1 draws as often as expected, 0 takes the likeliest. The coder heeds
    the last two only. Raises UsageError on values out of range.
    """

    steps: int = 8
    solver: str = "midpoint"
    guidance: float = 1.0
    seed: int = 0
    temperature: float = 0.8

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise UsageError(f"steps {self.steps}: must lie between 1 and {MAX_STEPS}")
        if self.solver not in SOLVERS:
            raise UsageError(f"no solver {self.solver!r}; there are {' and '.join(SOLVERS)}")
        if not (math.isfinite(self.guidance) and 0.0 <= self.guidance <= MAX_GUIDANCE):
            raise UsageError(f"guidance {self.guidance}: must lie between 0 and {MAX_GUIDANCE:.0f}")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}: must be 0 or more")
        if not (math.isfinite(self.temperature) and 0.0 <= self.temperature <= MAX_TEMPERATURE):
            raise UsageError(f"temperature {self.temperature}: must lie between 0 and {MAX_TEMPERATURE:.0f}")
