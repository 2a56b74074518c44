"""Best of n.

Stiennon et al. (2020), "Learning to summarize from human feedback", section 3.4: rejection sampling
by a reward model; also Cobbe et al. (2021), "Training verifiers to solve math word problems".
"""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import PRNGKeyArray

from .choice import Choice, Score, Search, best, thrown
from .draws import draw


class BestOfN(Search):
    """The one with the highest score of `n` independent draws of the model; of equals the first.

    `score(choices)` is called on the host with numpy arrays, once for each distinct candidate; by
    default it is the target's log likelihood (constraints, observes and factors, nats). What the
    target rules out is not scored and never chosen; where the score raises or is NaN, neither.
    """

    n: int = eqx.field(static=True)
    score: Score | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.n < 1:
            raise ValueError(f"BestOfN chooses among at least one candidate, got n={self.n}")

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Choice:
        """See `Search.run`."""
        draws = draw(key, target, self.n)
        scores, calls = draws.log_weights, self.n
        if self.score is not None:
            found, calls = draws.each(self.score, float)
            scores = np.nan_to_num(np.asarray(found, np.float64), nan=-np.inf, posinf=np.inf)
        return thrown(draws.choice(best(scores), scores, calls), throw)
