"""Population Monte Carlo: importance sampling whose proposals learn from earlier iterations.

Cappe, Guillin, Marin and Robert (2004), "Population Monte Carlo", algorithm of section 3.1, with
the deterministic-mixture weights of Elvira, Martino, Luengo and Bugallo (2017), section 4.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from ...ppl.algorithm import Algorithm
from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.status import DEAD, OK, Status
from ...ppl.target import Target, as_target
from ..mapping import Mapping, Vmap
from ..particles import Particles
from ..pooling import pool
from ..resampling import is_dead
from .adaptation import Adapt, Adaptation
from .multiple import (
    MultipleImportance,
    Sampler,
    _thrown,
    estimate_logpdf,
    random_weighted,
)
from .scoring import Stacked


class PopulationMonteCarlo(Algorithm):
    """`iterations` populations, each from proposals adapted to the one before, together as one.

    Law: proper weighting, and Z-hat is *unbiased*: whatever the past was, an iteration's weights
    gamma / q_t have mean Z, because q_t depends only on earlier iterations and each draw is weighed
    by its own iteration's proposals. `expectation` is self-normalised over all iterations:
    *consistent*, with a bias of order 1 / (number of draws). (Weights by the mixture over all
    iterations, as in `AdaptiveMultipleImportance`, make even Z-hat only consistent: later
    proposals depend on the draws they weigh.)

    - `n_particles`: per iteration, shared equally by the proposals' components.
    - `adapt`: an `Adaptation` such as `Locations(kernel)`, or a function `adapt(particles) ->
      ppl.Proposal` of the iteration before. It must cover the target, as any proposal.
    - `start`: the proposals of the first iteration, a tuple or one of `Proposal`, `Stacked` or None
      (the model).
    - `discard`: so many first iterations only adapt and are not in the result (still unbiased: the
      number is fixed beforehand).

    The whole is one compiled scan over iterations. `iterations_of` gives the populations apart.
    """

    n_particles: int = eqx.field(static=True)
    iterations: int = eqx.field(static=True)
    adapt: Adaptation
    start: Sampler | tuple[Sampler, ...]
    discard: int = eqx.field(static=True)
    mapping: Mapping

    def __init__(
        self,
        n_particles: int,
        iterations: int,
        adapt: Adaptation | Callable,
        start: Sampler | tuple[Sampler, ...] = None,
        discard: int = 0,
        mapping: Mapping | None = None,
    ):
        if iterations < 2 or not 0 <= discard < iterations:
            raise ValueError(
                f"iterations={iterations} with discard={discard}: at least two iterations, of "
                "which at least one is kept"
            )
        self.n_particles, self.iterations, self.discard = n_particles, iterations, discard
        self.adapt = adapt if isinstance(adapt, Adaptation) else Adapt(adapt)
        self.start = start
        self.mapping = Vmap() if mapping is None else mapping

    def run(self, key, target, *, throw=False):
        """All kept iterations as one population, the earliest first."""
        return _thrown(_run(self, key, as_target(target), None), throw)

    def run_conditional(self, key, target, retained, *, throw=False):
        """With one particle of a uniformly drawn kept iteration made to be `retained`.

        Later iterations adapt to it as to any other. See `SMC.run_conditional`.
        """
        return _thrown(_run(self, key, as_target(target), retained), throw)

    def random_weighted(self, key, target):
        """See `SMC.random_weighted`."""
        return random_weighted(self, key, target)

    def estimate_logpdf(self, key, target, choices):
        """See `SMC.estimate_logpdf`."""
        return estimate_logpdf(self, key, target, choices)

    def iterations_of(self, key: PRNGKeyArray, target: Target) -> Particles:
        """Every iteration's population, discarded ones too, as a batch with that leading axis."""
        return _iterations(self, key, as_target(target))

    def _all(
        self,
        key: PRNGKeyArray,
        target: Target,
        retained: Choices | None,
        chosen: Int[Array, ""],
    ) -> Particles:
        first = self.start if isinstance(self.start, tuple) else (self.start,)

        def iteration(t, proposals):
            sampler = shared_sampler(self.n_particles, proposals, self.mapping)
            key_t = jax.random.fold_in(key, 2 * t)
            return sampler.population(key_t, target, retained, chosen == t)

        def later(before, t):
            proposals = self.adapt.proposals(jax.random.fold_in(key, 2 * t + 1), before)
            new = iteration(t, proposals)
            return new, new

        begun = iteration(jnp.int32(0), first)
        _, rest = jax.lax.scan(later, begun, jnp.arange(1, self.iterations, dtype=jnp.int32))
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), begun, rest)


def shared_sampler(
    n_particles: int, proposals: tuple[Sampler, ...], mapping: Mapping
) -> MultipleImportance:
    """So many particles of which every component of the proposals draws as many."""
    components = sum(p.components if isinstance(p, Stacked) else 1 for p in proposals)
    each, rest = divmod(n_particles, components)
    if rest or not each:
        raise ValueError(
            f"{n_particles} particles cannot be shared equally by {components} components: use a "
            "multiple"
        )
    return MultipleImportance(each, proposals, mapping=mapping)


@compiled
def _iterations(algorithm: PopulationMonteCarlo, key: PRNGKeyArray, target: Target) -> Particles:
    return algorithm._all(key, target, None, jnp.int32(-1))


@compiled
def _run(
    algorithm: PopulationMonteCarlo,
    key: PRNGKeyArray,
    target: Target,
    retained: Choices | None,
) -> Particles:
    key_run, key_chosen = jax.random.split(key)
    chosen = jnp.int32(-1)
    if retained is not None:
        bounds = (algorithm.discard, algorithm.iterations)
        chosen = jax.random.randint(key_chosen, (), *bounds, dtype=jnp.int32)
    batch = algorithm._all(key_run, target, retained, chosen)
    kept = range(algorithm.discard, algorithm.iterations)
    pooled = pool(*(jax.tree.map(lambda x, t=t: x[t], batch) for t in kept))
    # An iteration may die as long as not all do.
    status = Status.ok(batch.status.sites)
    for t in kept:
        one = jax.tree.map(lambda x, t=t: x[t], batch.status)
        status = status.then((one.code != OK) & (one.code != DEAD), one.code, one.step, one.site)
    status = status.then(is_dead(pooled.log_weights), DEAD, batch.status.step[-1])
    pooled = eqx.tree_at(lambda p: p.status, pooled, status)
    if retained is None:
        return pooled
    offset = (chosen - algorithm.discard) * algorithm.n_particles
    position = jnp.where(chosen < 0, -1, offset + batch.position[chosen])
    return eqx.tree_at(lambda p: p.position, pooled, position.astype(jnp.int32))
