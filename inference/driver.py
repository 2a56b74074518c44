"""The one driver of all particle filters: decide, resample, propagate, weigh, rejuvenate, record.

Algorithm 10.1 of Chopin and Papaspiliopoulos (2020), "An Introduction to Sequential Monte Carlo",
with adaptive resampling; with a retained particle, conditional SMC (Andrieu, Doucet, Holenstein
2010) for any unbiased resampler.
"""

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from ..ppl.combinators.branches import any_member
from ..ppl.feynman_kac import FeynmanKac, Moved, Retained
from ..ppl.hot import drop_hot
from ..ppl.keys import particle_key
from ..ppl.partial import Choices, Given
from ..ppl.state_space import check_names
from ..ppl.status import DEAD, NAN, UNSUPPORTED, Status
from ..ppl.target import Target
from .annealing import Annealing, Weighted
from .mapping import Mapping
from .mcmc.kernel import Kernel
from .moves import KERNEL, RESAMPLE, TWIST, Independent, Moves
from .particles import Particles, level_and_size, log_mean_exp, trace_back
from .population import Population, checked, get_row, set_row, site_names
from .record import Record
from .rejuvenate import past, rejuvenate
from .resampling import Resampler, effective_sample_size, is_dead

# What resampling rearranges. The store is not among it: a branch would copy what it hands through.
_MOVING = ("state", "log_weights", "lengths", "log_potential", "log_priority", "position")


class Driver(eqx.Module):
    """One particle filter on one target: `init`, `advance` any number of times, `finish`."""

    n_particles: int = eqx.field(static=True)
    target: Target
    fk: FeynmanKac
    resampler: Resampler | None
    annealing: Annealing | None
    kernel: Kernel | None
    record: Record
    mapping: Mapping
    retained: Choices | None
    moves: Moves = eqx.field(default_factory=Independent)

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.fk.model.length

    @property
    def _each(self) -> Int[Array, "n"]:
        """Particles' numbers; to map over them tells the size even where the state is empty."""
        return jnp.arange(self.n_particles, dtype=jnp.int32)

    def init(self, key: PRNGKeyArray) -> Population:
        """The population after the first move."""
        n = self.n_particles
        fixed, _ = self.fk.split(self.target.constraints)
        key_move, key_position = jax.random.split(jax.random.fold_in(key, 0))
        retained, position = None, jnp.int32(-1)
        if self.retained is not None:
            position = jax.random.randint(key_position, (), 0, n, dtype=jnp.int32)
            retained = self.fk.split(self.retained)[0]

        def move(i):
            here = None if retained is None else Retained(retained, i == position)
            return self.moves.init(self.fk, key_move, i, fixed, here)

        moved = self.mapping.over(move, self._each)
        kept = self._keep(moved)
        row = jax.eval_shape(self._first_row, key, moved.state)
        check_names(moved.log_probs, row[1])
        sites = (*site_names(moved.log_probs), *site_names(row[1]), "an observe or factor")
        if self.fk.twist is not None:
            sites = (*sites, "the twist")
        log_evidence, ess = level_and_size(moved.log_potential)
        whom = self._whom(position)
        status = checked(Status.ok(sites), moved, moved.log_potential, log_evidence, -1, **whom)
        history = jnp.full(self.length + 1, jnp.nan, ess.dtype)
        identity = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (self.length, n))
        log_weights = moved.log_potential
        population = Population(
            state=moved.state,
            log_weights=log_weights,
            log_priority=None if self._plain else jnp.zeros_like(log_weights),
            log_potential=None if self.annealing is None else log_weights,
            exponents=None if self.annealing is None else jnp.ones_like(history),
            lengths=jnp.zeros(n, jnp.int32),
            position=position,
            status=status,
            initial=kept,
            store=self.record.buffers(row[0], self.length),
            ancestors=identity,
            pointers=identity if self.kernel is not None else identity[:, :0],
            resampled=jnp.zeros(self.length, bool),
            ess_history=history.at[0].set(ess),
            log_evidence_history=history.at[0].set(log_evidence),
            acceptance=jnp.full(self.length, jnp.nan, ess.dtype),
        )
        return self._prioritized(jax.random.fold_in(key, 0), population, jnp.int32(0))

    def advance(
        self, key: PRNGKeyArray, population: Population, start: Int[Array, ""], steps: int
    ) -> Population:
        """Up to `steps` steps from step `start`; fewer at the end or when all are done."""
        if steps == 0 or self.length == 0:
            return population
        _, fixed = self.fk.split(self.target.constraints)
        retained = None if self.retained is None else self.fk.split(self.retained)[1]
        start = jnp.asarray(start, jnp.int32)
        stop = jnp.minimum(start + steps, self.length)

        def keyed(key, t, population):
            kept = None if retained is None else get_row(retained, t)
            return self.step(key, population, t, get_row(fixed, t), kept)

        def body(t, population):
            return keyed(jax.random.fold_in(key, t + 1), t, population)

        if self.never_over or (self.resampler is not None and self.resampler.differentiable):
            if steps < self.length:  # part of a run, from anywhere, and to its end at most
                return jax.lax.fori_loop(start, stop, body, population)

            def one(population, row):
                return keyed(row[0], row[1], population), None

            ts = start + jnp.arange(steps, dtype=jnp.int32)
            keys = jax.vmap(lambda t: jax.random.fold_in(key, t + 1))(ts)
            return jax.lax.scan(one, population, (keys, ts))[0]

        def going(carry):
            t, population = carry
            return (t < stop) & any_member(~self.all_done(population))

        def go(carry):
            t, population = carry
            return t + 1, body(t, population)

        return jax.lax.while_loop(going, go, (start, population))[1]

    def finish(self, population: Population) -> Particles:
        """Weigh what is unfinished by `at_length`, and read the lineages."""
        ending = self.mapping.over(lambda i, x: self.fk.end(x), self._each, population.state)
        log_weights = population.log_weights + ending
        # Dying here is dying at the last step's end.
        status = population.status
        if self.retained is not None:
            lost = jnp.isneginf(log_weights[population.position])
            status = status.then(lost, UNSUPPORTED, self.length)
        status = status.then(is_dead(log_weights), DEAD, self.length)
        log_evidence, ess = level_and_size(log_weights)
        pointers = population.ancestors if self.kernel is None else population.pointers
        lineage = trace_back(pointers, self._each)
        store, states = dict(population.store), {}
        if "record" in store:
            seen = jnp.concatenate([lineage[:1], lineage[1:][self.record.rows(self.length)]])
            states = past({}, {"record": store.pop("record")}, seen)[1]
        initial, store = past(population.initial, store, lineage)
        choices = {**initial.get("choices", {}), **store.get("choices", {})}
        done_at = jnp.isnan(population.log_evidence_history)
        log_evidence_history = jnp.where(done_at, log_evidence, population.log_evidence_history)
        log_evidence_history = log_evidence_history.at[-1].set(log_evidence)
        if self.annealing is not None and not self.annealing.keeps_target:
            log_evidence = jnp.full_like(log_evidence, jnp.nan)
            log_evidence_history = jnp.full_like(log_evidence_history, jnp.nan)
        broken = status.code == NAN
        log_evidence = jnp.where(broken, jnp.nan, log_evidence)
        after = jnp.arange(self.length + 1, dtype=jnp.int32) > status.step
        log_evidence_history = jnp.where(broken & after, jnp.nan, log_evidence_history)
        return Particles(
            choices=choices,
            log_weights=log_weights,
            log_evidence=log_evidence,
            ess=ess,
            status=status,
            ancestors=population.ancestors,
            resampled=population.resampled,
            ess_history=jnp.where(done_at, ess, population.ess_history).at[-1].set(ess),
            log_evidence_history=log_evidence_history,
            exponents=population.exponents,
            acceptance=population.acceptance,
            lengths=population.lengths,
            position=population.position,
            state=drop_hot(population.state),
            record=states.get("record"),
        )

    def step(
        self,
        key: PRNGKeyArray,
        population: Population,
        t: Int[Array, ""],
        fixed: Given,
        retained: Given | None,
    ) -> Population:
        """Step t, with the rows of the constraints and of the retained choices at t."""
        population, ancestors, resampled = self._resample(key, population, t)
        log_weights, position = population.log_weights, population.position

        def move(i, state):
            here = None if retained is None else Retained(retained, i == position)
            moved = self.moves.step(self.fk, key, i, fixed, state, t, here)
            return moved, ~self.fk.model.finished(state)

        moved, active = self.mapping.over(move, self._each, population.state)
        alive = ~jnp.isneginf(log_weights)
        # A weight of zero stays zero, even where what follows from the impossible is NaN.
        log_weights = jnp.where(alive, log_weights + moved.log_potential, -jnp.inf)
        log_evidence, ess = level_and_size(log_weights)
        whom = {"alive": alive, **self._whom(position)}
        status = checked(population.status, moved, log_weights, log_evidence, t, **whom)
        potential, pointers = population.log_potential, population.pointers
        population = Population(
            state=moved.state,
            log_weights=log_weights,
            log_priority=population.log_priority,
            log_potential=None if potential is None else potential + moved.log_potential,
            exponents=population.exponents,
            lengths=population.lengths + active.astype(jnp.int32),
            position=position,
            status=status,
            initial=population.initial,
            store=self.record.stored(population.store, t, self._keep(moved)),
            ancestors=set_row(population.ancestors, t, ancestors),
            pointers=pointers if self.kernel is None else set_row(pointers, t, ancestors),
            resampled=population.resampled.at[t].set(resampled),
            ess_history=population.ess_history.at[t + 1].set(ess),
            log_evidence_history=population.log_evidence_history.at[t + 1].set(log_evidence),
            acceptance=population.acceptance,
        )
        if self.kernel is not None:
            key_kernel = jax.random.fold_in(key, KERNEL)
            population = rejuvenate(
                key_kernel, self.kernel, self.target, self.mapping, population, t
            )
        return self._prioritized(key, population, t + 1)

    @property
    def _plain(self) -> bool:
        """Are particles resampled by their weights?"""
        return self.annealing is None and self.fk.twist is None

    def _prioritized(self, key, population: Population, t) -> Population:
        """What the population is resampled by next, after t steps."""
        if self._plain:
            return population
        log_weights = log_priority = population.log_weights
        alive, exponents, status = (
            ~jnp.isneginf(log_weights),
            population.exponents,
            population.status,
        )
        if self.annealing is not None and exponents is not None:
            weighted = Weighted(
                log_weights,
                population.log_potential,  # pyright: ignore[reportArgumentType]
                population.log_priority,  # pyright: ignore[reportArgumentType]
            )
            log_priority, exponent = self.annealing.priority(weighted, t, self.length)
            exponents = exponents.at[t].set(exponent)
        if self.fk.twist is not None:
            key = jax.random.fold_in(key, TWIST)

            def psi(i, state):
                return self.fk.log_psi(particle_key(key, i), state, t)

            log_psi = self.mapping.over(psi, self._each, population.state)
            log_psi = log_psi.astype(log_weights.dtype)
            wrong = jnp.any(alive & (jnp.isnan(log_psi) | jnp.isposinf(log_psi)))
            status = status.then(wrong, NAN, t - 1, len(status.sites) - 1)
            log_priority = self.fk.twist.mixed(log_weights, log_priority + log_psi)
        log_priority = jnp.where(alive, log_priority, -jnp.inf)
        ess_history = population.ess_history.at[t].set(effective_sample_size(log_priority))
        return replace(
            population,
            log_priority=log_priority,
            exponents=exponents,
            status=status,
            ess_history=ess_history,
        )

    def _resample(self, key, population: Population, t):
        """The population after the one decision for it, its ancestors and the decision."""
        n = self.n_particles
        identity = jnp.arange(n, dtype=jnp.int32)
        if self.resampler is None:
            return population, identity, jnp.zeros((), bool)
        resampler = self.resampler

        def selected_by():
            """The priorities; what became NaN is never selected (the others go on)."""
            priority = population.priority
            return jnp.where(jnp.isnan(priority), -jnp.inf, priority)

        size = population.ess_history[t]  # of these priorities, NaN if some are NaN
        size = jax.lax.cond(
            jnp.isnan(size), lambda: effective_sample_size(selected_by()), lambda: size
        )
        wanted = self.moves.needed(resampler, size, n) & ~self.all_done(population)

        def draw(moving):
            drawn_by = selected_by()
            log_weights, position = moving["log_weights"], moving["position"]
            log_selection = resampler.selection(drawn_by)
            if self.retained is None:
                ancestors = self.moves.ancestors(
                    self.fk, key, resampler, log_selection, moving["state"]
                )
            else:
                key_draw = jax.random.fold_in(key, RESAMPLE)
                ancestors, new = resampler.conditional(key_draw, log_selection, position)
                position = jnp.where(wanted, new, position)
            # In a batch of runs all come here if any member wants it; the others keep theirs.
            ancestors = jnp.where(wanted, ancestors, identity)
            level = log_mean_exp(log_selection)

            def after(log_weights):
                """Divided by what the particle was selected by."""
                if self._plain and log_selection is drawn_by:
                    return jnp.where(wanted, level, log_weights)
                left = (log_weights - log_selection)[ancestors]
                return jnp.where(wanted, level + left, log_weights)

            if self.annealing is None or self.annealing.keeps_target:
                log_weights = after(log_weights)
            else:
                log_weights = jnp.where(wanted, log_mean_exp(log_weights), log_weights)
            copied = {name: moving[name] for name in ("state", "lengths", "log_potential")}
            copied = jax.tree.map(lambda x: x[ancestors], copied)
            priority = moving["log_priority"]
            new = {
                **self.mapping.place({**copied, "log_weights": log_weights}),
                "log_priority": None if priority is None else after(priority),
                "position": position,
            }
            return new, ancestors

        def keep(moving):
            return moving, identity

        moving = {name: getattr(population, name) for name in _MOVING}
        moving, ancestors = jax.lax.cond(any_member(wanted), draw, keep, moving)
        return replace(population, **moving), ancestors, wanted

    @property
    def never_over(self) -> bool:
        """Does every run take all steps?

        With a kernel it has to: a move may bring a finished particle back, and to leave moves out
        when all happen to be finished would bias the law towards early ends.
        """
        return self.fk.model.done is None or self.kernel is not None

    def all_done(self, population: Population) -> Bool[Array, ""]:
        """Nothing can change any more: every particle is done or dead."""
        if self.never_over:
            return jnp.zeros((), bool)
        finished = jax.vmap(self.fk.model.finished)(population.state)
        return jnp.all(finished | jnp.isneginf(population.log_weights))

    def _whom(self, position: Int[Array, ""]) -> dict[str, Any]:
        """What `checked` has to know of this run."""
        retained = None if self.retained is None else position
        return {"retained": retained, "behind": 1 if self.fk.twist is None else 2}

    def _keep(self, moved: Moved) -> dict[str, Any]:
        kept = jax.vmap(self.record.keep)(moved.choices, moved.state)
        if self.kernel is None:
            return kept
        return {
            **kept,
            "log_probs": moved.log_probs,
            "active": moved.active,
            "log_weight": moved.log_weight,
        }

    def _first_row(self, key, state):
        """Shapes of what a step stores, and of its log densities."""
        if self.length == 0:
            return {}, {}
        _, fixed = self.fk.split(self.target.constraints)
        retained = None
        if self.retained is not None:
            kept = self.fk.split(self.retained)[1]
            retained = Retained(get_row(kept, 0), jnp.ones((), bool))

        def move(i, state):
            return self.fk.step(key, get_row(fixed, 0), state, jnp.int32(0), retained)

        moved = jax.vmap(move)(self._each, state)
        return self._keep(moved), moved.log_probs
