"""Multiple importance sampling: several proposals, each draw weighed by their mixture.

Veach and Guibas (1995), "Optimally combining sampling techniques for Monte Carlo rendering",
section 3.3 (balance heuristic); Owen and Zhou (2000), "Safe and effective importance sampling",
section 2 (deterministic mixture).
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...ppl.algorithm import Algorithm
from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.proposal import Proposal
from ...ppl.status import DEAD, NAN, UNSUPPORTED, Status
from ...ppl.target import Target, as_target
from ..mapping import Mapping, Vmap
from ..particles import Particles, log_mean_exp
from ..record import Record
from ..resampling import effective_sample_size, is_dead
from ..smc import SMC
from .scoring import Stacked, log_densities

Sampler = Proposal | Stacked | None


class MultipleImportance(Algorithm):
    """Importance sampling with several proposals at once, by the balance heuristic.

    Law: proper weighting, Z-hat unbiased, if what the target makes possible is possible under at
    least one proposal. Component k draws n_k of the N particles, and each has the weight gamma(x) /
    sum_k (n_k / N) q_k(x): bounded by gamma / (share of its best proposal), where the weights of
    each proposal by itself are not. The variance of Z-hat is never far above that of any proposal
    alone (Veach and Guibas, theorem 1).

    - `n_particles`: of each proposal, or one number for every proposal.
    - `proposals`: `ppl.Proposal`s, None for the model's own draws (a defensive component), or
      `Stacked` (so many particles from each of its rows). Their sites may differ; the densities are
      of all free sites, so that sites a proposal leaves out count as drawn from the model. They
      must be exact densities: no `observe`, `factor`, `marginal` or `normalize` in a proposal.

    For a StateSpace the mixture is over whole trajectories: a particle keeps its proposal through
    all steps, and its density under every other is computed along the way, at the price of one
    more pass of the model. The histories are those of the balanced weights after every move.
    """

    n_particles: int | tuple[int, ...] = eqx.field(static=True)
    proposals: tuple[Sampler, ...] = eqx.field(converter=tuple)
    record: Record = eqx.field(default_factory=Record.choices)
    mapping: Mapping = eqx.field(default_factory=Vmap)

    def __check_init__(self):
        if not self.proposals:
            raise ValueError("MultipleImportance needs at least one proposal; None is the model")
        if len(self._counts) != len(self.proposals) or min(self._counts) < 1:
            raise ValueError(
                f"n_particles={self.n_particles} for {len(self.proposals)} proposals: give one "
                "positive number, or one for each"
            )
        if not self.record.with_choices:
            raise ValueError("the mixture is of the choices: use record=Record.choices()")

    @property
    def _counts(self) -> tuple[int, ...]:
        n = self.n_particles
        return (n,) * len(self.proposals) if isinstance(n, int) else tuple(n)

    def run(self, key, target, *, throw=False):
        """The weighted population: the particles of the first proposal come first."""
        return _thrown(_run(self, key, as_target(target), None, True), throw)

    def run_conditional(self, key, target, retained, *, throw=False):
        """The population with one particle made to be `retained`; see `SMC.run_conditional`.

        Its proposal is k with probability n_k q_k(x) / sum_j n_j q_j(x), its slot one of k's.
        """
        return _thrown(_run(self, key, as_target(target), retained, True), throw)

    def random_weighted(self, key, target):
        """See `SMC.random_weighted`."""
        return random_weighted(self, key, target)

    def estimate_logpdf(self, key, target, choices):
        """See `SMC.estimate_logpdf`."""
        return estimate_logpdf(self, key, target, choices)

    def population(
        self,
        key: PRNGKeyArray,
        target: Target,
        retained: Choices | None = None,
        here: Bool[Array, ""] | bool = True,
    ) -> Particles:
        """The population as part of a larger program; `retained` counts where `here` holds."""
        key_run, key_place = jax.random.split(key)
        sizes = [p.components if isinstance(p, Stacked) else 1 for p in self.proposals]
        counts = jnp.concatenate(
            [jnp.full(size, n, jnp.int32) for size, n in zip(sizes, self._counts, strict=True)]
        )
        chosen = slot = jnp.int32(-1)
        unsupported = jnp.zeros((), bool)
        if retained is not None:
            log_gamma, log_q = log_densities(target, self.proposals, retained)
            share = log_q[-1] + jnp.log(counts.astype(log_q.dtype))
            unsupported = jnp.isneginf(log_gamma[-1]) | is_dead(share)
            key_chosen, key_slot = jax.random.split(key_place)
            drawn = jax.random.categorical(key_chosen, jnp.where(unsupported, 0.0, share))
            chosen = jnp.where(here, drawn.astype(jnp.int32), -1)
            slot = jax.random.randint(key_slot, (), 0, counts[drawn], dtype=jnp.int32)
        groups, start = [], 0
        for i, (proposal, n, size) in enumerate(
            zip(self.proposals, self._counts, sizes, strict=True)
        ):
            key_group = jax.random.fold_in(key_run, i)
            mine = chosen - start == jnp.arange(size, dtype=jnp.int32)
            groups.append(self._group(key_group, target, proposal, n, retained, mine, slot))
            start += size
        offset = jnp.cumsum(counts) - counts
        position = jnp.where(chosen < 0, -1, offset[chosen].astype(jnp.int32) + slot)
        return self._weighed(target, groups, counts, position, here & unsupported)

    def _group(self, key, target, proposal, n, retained, mine: Bool[Array, "components"], slot):
        """A list of the components' particles, with a leading axis of components."""

        def one(proposal, mine, key):
            smc = SMC(n, None, proposal, record=self.record, mapping=self.mapping)
            if retained is None:
                return smc.run(key, target)
            # One more than needed: the retained particle, or in its place a free one, is left out.
            smc = SMC(n + 1, None, proposal, record=self.record, mapping=self.mapping)
            particles = smc.run_conditional(key, target, retained)
            free = jnp.arange(n, dtype=jnp.int32)
            free = free + (free >= particles.position).astype(jnp.int32)
            here = mine & (jnp.arange(n, dtype=jnp.int32) == slot)
            index = jnp.where(here, particles.position, free)
            thinned = particles.take(index, particles.log_weights[index])
            ancestors = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (*_steps(particles), n))
            return eqx.tree_at(lambda p: p.ancestors, thinned, ancestors)

        keys = jax.random.split(key, mine.shape[0])
        if isinstance(proposal, Stacked):
            return proposal.over(one, mine, keys)
        return jax.tree.map(lambda x: x[None], one(proposal, mine[0], keys[0]))

    def _weighed(
        self,
        target: Target,
        groups: Sequence[Particles],
        counts: Int[Array, "components"],
        position: Int[Array, ""],
        unsupported: Bool[Array, ""],
    ) -> Particles:
        def joined(name):
            parts = [getattr(g, name) for g in groups]
            flat = [jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), part) for part in parts]
            return jax.tree.map(lambda *xs: jnp.concatenate(xs), *flat)

        choices, own = joined("choices"), joined("log_weights")
        log_gamma, log_q = self.mapping.over(
            lambda i, x: log_densities(target, self.proposals, x), jnp.arange(own.shape[0]), choices
        )
        n = own.shape[0]
        share = jnp.log(counts.astype(log_q.dtype) / n)
        log_mixture = jax.nn.logsumexp(log_q + share[None, None, :], axis=-1)
        history = jnp.where(jnp.isneginf(log_gamma), -jnp.inf, log_gamma - log_mixture)
        # A draw from an empty distribution has weight zero, whatever its density.
        log_weights = jnp.where(jnp.isneginf(own), -jnp.inf, history[:, -1])
        history = history.at[:, -1].set(log_weights)
        return Particles(
            choices=choices,
            log_weights=log_weights,
            log_evidence=log_mean_exp(log_weights),
            ess=effective_sample_size(log_weights),
            status=_status(groups, log_weights, unsupported),
            ancestors=jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (*_steps(groups[0]), n)),
            resampled=jnp.zeros(_steps(groups[0]), bool),
            ess_history=jax.vmap(effective_sample_size, in_axes=1)(history),
            log_evidence_history=jax.vmap(log_mean_exp, in_axes=1)(history),
            exponents=None,
            acceptance=jnp.full(_steps(groups[0]), jnp.nan, log_weights.dtype),
            lengths=joined("lengths"),
            position=position,
            state=joined("state"),
            record=joined("record"),
        )


def random_weighted(algorithm, key, target):
    """A draw x ~ q (one particle, by weight) and log w = log gamma(x) - log Z-hat."""
    key_run, key_pick = jax.random.split(key)
    target = as_target(target)
    particles = algorithm.run(key_run, target)
    index = particles.pick(key_pick)
    choices = jax.tree.map(lambda x: x[index], particles.choices)
    dead = jnp.isneginf(particles.log_evidence)
    log_evidence = jnp.where(dead, 0.0, particles.log_evidence)
    return choices, jnp.where(dead, jnp.inf, target.log_density(choices) - log_evidence)


def estimate_logpdf(algorithm, key, target, choices):
    """Log w, w = gamma(x) / Z-hat of a run that retains x, with E[w] = q(x)."""
    target = as_target(target)
    log_gamma = target.log_density(choices)
    log_evidence = algorithm.run_conditional(key, target, choices).log_evidence
    return jnp.where(jnp.isneginf(log_gamma), -jnp.inf, log_gamma - log_evidence)


@compiled
def _run(
    algorithm: MultipleImportance,
    key: PRNGKeyArray,
    target: Target,
    retained: Choices | None,
    here: bool,
) -> Particles:
    return algorithm.population(key, target, retained, here)


def _thrown(particles: Particles, throw: bool) -> Particles:
    if throw and not isinstance(particles.log_evidence, Tracer):
        particles.status.throw()
    return particles


def _steps(particles: Particles) -> tuple[int]:
    return (particles.ancestors.shape[-2],)


def _status(
    groups: Sequence[Particles], log_weights: Float[Array, "n"], unsupported: Bool[Array, ""]
) -> Status:
    """The first NaN of a component; a component may die as long as not all do."""
    status = Status.ok((*groups[0].status.sites, "a density of a proposal"))
    for group in groups:
        first = jnp.argmax(group.status.code == NAN)
        code, step, site = (
            x[first] for x in (group.status.code, group.status.step, group.status.site)
        )
        status = status.then(code == NAN, code, step, site)
    steps = groups[0].ancestors.shape[-2]
    last = len(status.sites) - 1
    status = status.then(jnp.any(jnp.isnan(log_weights)), NAN, steps, last)
    status = status.then(unsupported, UNSUPPORTED, steps)
    return status.then(is_dead(log_weights), DEAD, steps)
