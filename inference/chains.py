"""Markov chains side by side: many starts, one compiled run.

Diagnostics after Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021, "Rank-normalization,
folding, and localization: an improved R-hat".
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..ppl.compiled import compiled
from ..ppl.distributions import third_party
from ..ppl.partial import Choices
from ..ppl.status import OK, Status
from ..ppl.target import Target, as_target
from .mcmc.kernel import Chain, Kernel
from .mcmc.start import start
from .mcmc.transition import log_gamma, written

NO_START = 101
"""Status code of chains alone: no start of positive, finite density."""


class ChainStatus(Status):
    """The status of chains: ok, or which of them found no start."""

    @property
    def message(self) -> str:
        """What happened and what to do."""
        code = np.ravel(np.asarray(self.code))
        bad = np.flatnonzero(code != OK)
        if not len(bad):
            return "ok"
        return (
            f"{len(bad)} of {len(code)} chains (the first is {bad[0]}) found no start of positive, "
            "finite density among the draws of the model under its constraints, and did not move. "
            "Instead give starts that the target makes possible, MCMC(..., init=choices) with "
            "choices [chain, ...], for example draws of an SMC run; or look for a factor that is "
            "-inf or NaN everywhere"
        )


class Chains(eqx.Module):
    """The draws of several Markov chains. Not a weighted population, and no evidence estimate.

    - `choices`: [chain, draw, ...] a site; steps after a finish hold zeros.
    - `log_density` [chain, draw]: log of the target's unnormalised density, nats.
    - `acceptance` [chain, draw]: what the kernel reported, averaged over thinned moves
      (for the first draw over the burn-in too).
    - `status`: one entry a chain; a chain without a start holds its last try, unmoved.
    """

    choices: Choices
    log_density: Float[Array, "chain draw"]
    acceptance: Float[Array, "chain draw"]
    status: ChainStatus

    def expectation(self, f: Callable[[Choices], Any]) -> PyTree:
        """The mean of `f(choices)` over chains and draws, a tree."""
        values = jax.vmap(jax.vmap(f))(self.choices)

        def mean(x):
            x = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)
            return jnp.mean(x, axis=(0, 1))

        return jax.tree.map(mean, values)

    def r_hat(self) -> dict[str, Any]:
        """Rank-normalised split R-hat of every entry of every site; NaN for a constant.

        Above 1.01 the chains do not agree. Needs at least four draws.
        """
        return self._diagnosed(0)

    def ess_bulk(self) -> dict[str, Any]:
        """Effective number of draws for the bulk (means, medians) of every entry of every site."""
        return self._diagnosed(1)

    def ess_tail(self) -> dict[str, Any]:
        """Effective number of draws for the 5% and 95% quantiles, the lesser of the two."""
        return self._diagnosed(2)

    def last(self) -> Choices:
        """Each chain's last draw, [chain, ...]: `init` of a run that goes on."""
        return jax.tree.map(lambda x: x[:, -1], self.choices)

    def plot(self, axes: Any = None) -> Any:
        """Traces and histograms of the first scalar sites by chain; a matplotlib figure."""
        from .mcmc.figure import plot_chains

        return plot_chains(self, axes)

    def to_arviz(self) -> Any:
        """For ArviZ: `posterior` and `sample_stats` (`lp`, `acceptance_rate`) by chain and draw.

        A nested choice is named by its address, `"a/b"`.
        """
        try:
            import arviz
        except ImportError as error:
            raise ImportError("to_arviz needs ArviZ: pip install 'feynkac[plots]'") from error
        groups = {
            "posterior": {name: np.asarray(x) for name, x in flat(self.choices)},
            "sample_stats": {
                "lp": np.asarray(self.log_density),
                "acceptance_rate": np.asarray(self.acceptance),
            },
        }
        # ArviZ 1.0 takes one dict of groups.
        old = hasattr(arviz, "InferenceData")
        data = arviz.from_dict(**groups) if old else arviz.from_dict(groups)
        data["posterior"].attrs.update({"inference_library": "feynkac"})
        return data

    def _diagnosed(self, which: int) -> dict[str, Any]:
        chains, draws = self.log_density.shape
        if draws < 4:
            raise ValueError(f"diagnostics need at least 4 draws a chain, got {draws}")
        sites = [(name, jnp.asarray(x)) for name, x in flat(self.choices)]
        entries = [x.reshape(chains, draws, -1).astype(float) for _, x in sites]
        values, out = np.asarray(_diagnostics(jnp.concatenate(entries, -1)))[which], {}
        for (name, x), entry in zip(sites, entries, strict=True):
            n = entry.shape[-1]
            out[name], values = values[:n].reshape(x.shape[2:]), values[n:]
        return out

    def __repr__(self) -> str:
        if isinstance(self.log_density, Tracer) or self.log_density.ndim != 2:
            return f"Chains(log_density={self.log_density!r}, status={self.status!r})"
        chains, draws = self.log_density.shape
        return (
            f"Chains(chains={chains}, draws={draws}, acceptance="
            f"{float(jnp.mean(self.acceptance)):.2f}, sites={sorted(self.choices)}, "
            f"status={self.status!r})"
        )


class MCMC(eqx.Module):
    """`MCMC(kernel, n_chains, n_samples, burn_in, thin)`: chains of one kernel, in one run.

    Every chain starts from a draw of the model of its own (under the constraints, drawn again while
    the target's density is 0), which is over-dispersed, so that R-hat can see what was missed; or
    from `init`, choices [chain, ...] (sites left out are drawn). `burn_in` moves are dropped, then
    each of `n_samples` draws is the last of `thin` moves.

    Law: as the number of draws grows, averages tend to posterior expectations if the kernel is
    irreducible; finite runs are biased by their starts. This is no `Algorithm`: the result is not
    properly weighted and estimates no evidence.
    """

    kernel: Kernel
    n_chains: int = eqx.field(static=True, default=4)
    n_samples: int = eqx.field(static=True, default=1000)
    burn_in: int = eqx.field(static=True, default=500)
    thin: int = eqx.field(static=True, default=1)
    init: Choices | None = None

    def __check_init__(self):
        for name, least in (("n_chains", 1), ("n_samples", 1), ("burn_in", 0), ("thin", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"MCMC needs {name} >= {least}, got {getattr(self, name)}")
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(self.init)} - {(self.n_chains,)}
        if self.init is not None and sizes:
            raise ValueError(
                f"init holds choices with leading axes {sorted(sizes)}, but there are "
                f"{self.n_chains} chains: give one start a chain"
            )

    def run(self, key: PRNGKeyArray, target: Any, *, throw: bool = False) -> Chains:
        """The chains for a target (or a model that needs no args).

        `throw=True` raises `InferenceError` if some chain has no start (on the host, after the
        run).
        """
        chains = _run(self, key, as_target(target))
        if throw and not isinstance(chains.log_density, Tracer):
            chains.status.throw()
        return chains


@compiled
def _run(mcmc: MCMC, key: PRNGKeyArray, target: Target) -> Chains:
    def moves(walk, state, key, n):
        """The state after n moves (a traced number), and their mean acceptance."""

        def once(i, carry):
            state, rate = carry
            state, accepted = walk.step(jax.random.fold_in(key, i), state)
            return state, rate + accepted

        state, rate = jax.lax.fori_loop(0, n, once, (state, jnp.zeros(())))
        return state, rate / n.astype(rate.dtype)

    def one(i, init):
        key_start, key_walk, key_run = jax.random.split(jax.random.fold_in(key, i), 3)
        trace, good = start(key_start, target, init)
        chain = Chain(written(trace), None, jnp.zeros(()))
        walk, state = mcmc.kernel.walk(key_walk, target, chain)

        def draw(state, j):
            n = jnp.where(j == 0, mcmc.burn_in + mcmc.thin, mcmc.thin)
            new, rate = moves(walk, state, jax.random.fold_in(key_run, j), n)
            # A chain that has no start stays where it is.
            new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
            at = walk.chain(new).trace
            return new, (at.choices, log_gamma(target, at), rate)

        _, draws = jax.lax.scan(draw, state, jnp.arange(mcmc.n_samples, dtype=jnp.int32))
        status = Status.ok().then(~good, NO_START, -1)
        return *draws, status

    axes = (0, None if mcmc.init is None else 0)
    choices, log_density, rate, status = jax.vmap(one, in_axes=axes)(
        jnp.arange(mcmc.n_chains), mcmc.init
    )
    status = ChainStatus(status.code, status.step, status.site)
    return Chains(choices, log_density, rate, status)


@compiled
@third_party
def _diagnostics(draws: Float[Array, "chain draw entry"]) -> Float[Array, "three entry"]:
    """R-hat, bulk and tail effective sample size of each entry."""
    from blackjax import diagnostics

    names = ("rhat", "ess_bulk", "ess_tail")
    return jnp.stack([jnp.ravel(getattr(diagnostics, name)(draws)) for name in names])


def flat(choices: Any, prefix: str = "") -> Any:
    """Pairs of address, "a/b", and array."""
    for name, node in choices.items():
        if isinstance(node, dict):
            yield from flat(node, f"{prefix}{name}/")
        else:
            yield prefix + name, node
