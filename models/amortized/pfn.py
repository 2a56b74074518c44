"""Prior-data fitted networks: a program that samples data sets in, a network that has seen all out.

Mueller, Hollmann, Pineda Arango, Grabocka and Hutter (2022), "Transformers can do Bayesian
inference": the network minimizes E[-log q(y | x, D)] over data sets of the prior (algorithm 1), so
that its loss minus that of the exact predictive is the expected Kullback-Leibler divergence
between them (corollary 1.1).
"""

import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from ...inference import vi
from ...ppl.compiled import compiled
from ...ppl.generative import GenerativeFunction
from ..learned import saving
from ..network import Network, network
from .bars import Bars
from .heads import AbstractHead, Classes, Riemann
from .kernel_scores import KernelScores, Solved
from .set_transformer import Cache, SetTransformer
from .training import train

Memory = tuple[Cache, Solved | None]
"""What a network keeps of a context."""


class _Module(nnx.Module):
    """The transformer and the head's layer."""

    def __init__(self, transformer: SetTransformer, last: nnx.Module):
        self.transformer, self.last = transformer, last


class PFN(eqx.Module):
    """A network that answers y at queries given a data set, trained on the `prior`'s data sets.

    Args:
        prior: a program whose sites `x` [points, d] and `y` [points] are a data set. Its first
            `context` points become context, the rest queries: the points must be exchangeable (a
            program of an ordered series draws its times in random order).
        args: of the program.
        context: the largest number of points that the network learns to condition on; every data
            set of a batch has its own, uniform in 0..context.
        head: `Riemann(bars)` for numbers, `Labels(classes)` for classes.
        scores: regressions whose predictions the network reads beside the data, and that bars
            start from; None for none.
        width, layers, heads, hidden: of the `SetTransformer`.
        key: of the network's first parameters and of the draws that borders and ranges are from.
        draws: how many data sets these are.

    `net` is what is trained. `validity`: the ranges of n, x and y outside of which answers are
    flagged.

    Raises:
        ValueError: no sites x [points, d] and y [points], or no point left for queries.
    """

    prior: GenerativeFunction
    args: tuple
    head: AbstractHead
    scores: KernelScores | None
    net: Network
    loc: Float[Array, "d"]
    scale: Float[Array, "d"]
    low: Float[Array, "d"]
    high: Float[Array, "d"]
    context: int = eqx.field(static=True)

    def __init__(
        self,
        prior: GenerativeFunction,
        args: tuple = (),
        *,
        context: int,
        head: AbstractHead | None = None,
        scores: KernelScores | None = None,
        key: PRNGKeyArray,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        draws: int = 4096,
    ) -> None:
        self.prior, self.args, self.context, self.scores = prior, args, context, scores
        key_net, key_draws = jax.random.split(key)
        x, y = _data_sets(self.prior, self.args, jax.random.split(key_draws, draws))
        if x.ndim != 3 or y.shape != x.shape[:2]:
            raise ValueError(
                f"the prior's site x must be [points, d] and y [points], got {x.shape[1:]} and "
                f"{y.shape[1:]}: give a single number of features an axis of its own"
            )
        if not 1 <= context < x.shape[1]:
            raise ValueError(
                f"a context of {context} needs a prior of more points than that, got {x.shape[1]}:"
                " what is beyond the context are the queries"
            )
        x = np.asarray(x)
        if not np.isfinite(x).all():
            raise ValueError("the prior draws inputs x that are not finite")
        self.head = fitted = (Riemann() if head is None else head).fitted(y)
        self.loc, self.scale = jnp.asarray(x.mean((0, 1))), jnp.asarray(x.std((0, 1)) + 1e-6)
        self.low, self.high = jnp.asarray(x.min((0, 1))), jnp.asarray(x.max((0, 1)))
        sizes = {"width": width, "layers": layers, "heads": heads, "hidden": hidden}

        def made(key: PRNGKeyArray) -> Network:
            rngs = nnx.Rngs(key)
            inputs = x.shape[-1] + (scores.features(fitted.features) if scores else 0)
            transformer = SetTransformer(inputs, fitted.features, **sizes, rngs=rngs)
            return network(_Module(transformer, fitted.module(width, rngs)))

        self.net = jax.jit(made)(key_net)  # one compilation, not one for each parameter

    @property
    def validity(self) -> dict[str, Any]:
        """Ranges of the number of points, of x (one pair a feature) and of y."""
        x = np.stack([self.low, self.high], axis=-1).tolist()
        return {"n": [0, self.context], "x": x, "y": [float(v) for v in self.head.range]}

    def train(
        self,
        key: PRNGKeyArray,
        steps: int,
        *,
        batch: int = 63,
        learning_rate: float = 2e-3,
        **options: Any,
    ) -> tuple["PFN", vi.Fit]:
        """The network after `steps` steps of `batch` fresh data sets each, and what training told.

        `learning_rate` and `options` (`warmup`, `clip`, `every`, `checkpoint`, `callback`,
        `progress`) are those of `train`. Its values are negated losses, nats.
        """
        fit = train(
            key, self.net, _Loss(self, batch), steps, learning_rate=learning_rate, **options
        )
        return self.with_net(fit.params), fit

    def with_net(self, net: Network) -> "PFN":
        """The same with other parameters."""
        return eqx.tree_at(lambda pfn: pfn.net, self, net)

    def save(self, path: str | os.PathLike, **notes: Any) -> None:
        """Write the network (not the prior) to a safetensors file; see `models.learned.save`."""
        saving.save(path, _arrays(self), **notes)

    def load(self, path: str | os.PathLike) -> "PFN":
        """This network with the arrays of one that was made with the same arguments and saved.

        Raises:
            ArtifactError: the file's arrays are not those of such a network.
        """
        return eqx.tree_at(_arrays, self, saving.load(path, _arrays(self)))

    def condition(self, x: ArrayLike, y: ArrayLike) -> "Posterior":
        """What the network makes of the data x [n, d], y [n]: computed once, asked many times.

        One compilation serves all n up to `context`; above it there is one for each n, and
        answers are flagged. Data that are not finite or outside of `validity` flag all answers
        (those to data with NaN are NaN).

        Raises:
            ValueError: shapes that do not fit each other or the prior's.
        """
        # On the host where possible, so that no number of points compiles anything.
        numbers = jnp if isinstance(x, Tracer) or isinstance(y, Tracer) else np
        x, y = numbers.asarray(x, jnp.result_type(float)), numbers.asarray(y)
        if x.ndim != 2 or x.shape[1] != len(self.low) or y.shape != x.shape[:1]:
            raise ValueError(
                f"the prior has x [n, {len(self.low)}] and y [n], got {x.shape} and {y.shape}"
            )
        if jnp.issubdtype(y.dtype, jnp.floating) != isinstance(self.head, Riemann):
            raise ValueError(
                f"y is {y.dtype}: give integers to a head of labels, floats to one of bars"
            )
        n = len(x)
        rest = max(self.context - n, 0)
        x = numbers.pad(x, ((0, rest), (0, 0)))
        y = numbers.pad(y, (0, rest)).astype(jax.dtypes.canonicalize_dtype(y.dtype))
        x, y, count = jax.device_put((x, y, np.int32(n)))
        memory, mask, valid = _remember(self, x, y, count)
        return Posterior(self, memory, mask, valid)

    def inside(self, x: Float[Array, "*batch d"]) -> Bool[Array, "*batch"]:
        """Whether inputs are in the range of the prior's, wider by a hundredth."""
        margin = 0.01 * (self.high - self.low)
        low, high = (
            v.reshape((1,) * (x.ndim - 1) + (-1,)) for v in (self.low - margin, self.high + margin)
        )
        return jnp.all((x >= low) & (x <= high), axis=-1)

    def loss(self, net: Network, key: PRNGKeyArray, batch: int = 63) -> Float[Array, ""]:
        """Mean negative log score, nats, of `net` on queries of `batch` data sets of the prior.

        The numbers of points in context are spread evenly over 0..context.
        """
        key_data, key_size = jax.random.split(key)
        x, y = _data_sets(self.prior, self.args, jax.random.split(key_data, batch))
        first = jax.random.randint(key_size, (), 0, self.context + 1)
        sizes = (first + jnp.arange(batch)) % (self.context + 1)
        law = self.answer(
            net, x[:, : self.context], y[:, : self.context], sizes, x[:, self.context :]
        )
        return -jnp.mean(law.log_prob(y[:, self.context :]))

    def answer(
        self,
        net: Network,
        x: Float[Array, "*batch n d"],
        y: Array,
        sizes: Int[Array, "*batch"],
        queries: Float[Array, "*batch m d"],
    ) -> Bars | Classes:
        """The law of y at queries given the first `sizes` points, uncached; for training."""
        places = jnp.arange(x.shape[-2], dtype=sizes.dtype).reshape((1,) * sizes.ndim + (-1,))
        mask = places < sizes[..., None]
        memory = self.remember(net, x, y, mask)
        return self.ask(net, queries, memory, mask, jnp.ones(queries.shape[:-1], bool))

    def remember(self, net: Network, x: Array, y: Array, mask: Array) -> Memory:
        """All that `ask` needs of the points where `mask`."""
        x, y, solved = self.standardized(x), self.head.embed(y), None
        if self.scores is not None:
            solved, scores = self.scores.fit(x, y, mask)
            x = jnp.concatenate([x, scores], axis=-1)
        return net.module.transformer.remember(x, y, mask), solved

    def ask(
        self, net: Network, queries: Array, memory: Memory, mask: Array, valid: Array
    ) -> Bars | Classes:
        """The law of y at queries; `valid` is handed on to it."""
        cache, solved = memory
        x, start = self.standardized(queries), None
        if self.scores is not None and solved is not None:
            scores = self.scores.read(solved, x)
            start = self.scores.mixture(scores, self.head.features)
            x = jnp.concatenate([x, scores], axis=-1)
        known = net.module.transformer.ask(x, cache, mask)
        return self.head.law(net.module.last(known), valid, start)

    def standardized(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Inputs as the network reads them: of mean 0 and variance 1 in the prior's draws."""
        loc, scale = (v.reshape((1,) * (x.ndim - 1) + (-1,)) for v in (self.loc, self.scale))
        return (x - loc) / scale


class Posterior(eqx.Module):
    """What a network knows of a data set: keys and values of its points. Made by `condition`.

    `valid`: the data are such as the network was trained on.
    """

    pfn: PFN
    memory: Memory
    mask: Bool[Array, "n"]
    valid: Bool[Array, ""]

    def predict(self, queries: ArrayLike) -> Bars | Classes:
        """The laws of y at the queries, each given the data alone: batch shape [m], one pass.

        Their `valid` [m] is False where the network was not trained for the question: data with
        too many points, not finite or out of range, or such a query.
        """
        queries = jnp.asarray(queries, dtype=float)
        if queries.ndim != 2 or queries.shape[1] != len(self.pfn.low):
            raise ValueError(f"queries are [m, {len(self.pfn.low)}], got {queries.shape}")
        return _ask(self, queries)


@compiled
def _remember(pfn: PFN, x: Array, y: Array, n: Array) -> tuple[Memory, Array, Array]:
    mask = jnp.arange(len(x), dtype=n.dtype) < n
    good = jnp.all((pfn.inside(x) & pfn.head.inside(y)) | ~mask)
    return pfn.remember(pfn.net, x, y, mask), mask, good & (n <= pfn.context)


@compiled
def _ask(posterior: Posterior, queries: Array) -> Bars | Classes:
    pfn = posterior.pfn
    valid = posterior.valid & pfn.inside(queries)
    return pfn.ask(pfn.net, queries, posterior.memory, posterior.mask, valid)


class _Loss(eqx.Module):
    pfn: PFN
    batch: int = eqx.field(static=True)

    def __call__(self, net, key):
        return self.pfn.loss(net, key, self.batch)


def _arrays(pfn: PFN) -> Any:
    return pfn.net, pfn.head, pfn.loc, pfn.scale, pfn.low, pfn.high


def _data_sets(prior, args, keys):
    return jax.jit(jax.vmap(lambda key: _sites(prior, args, key)))(keys)


def _sites(prior, args, key):
    choices = prior.simulate(key, *args).choices
    missing = [name for name in ("x", "y") if name not in choices]
    if missing:
        raise ValueError(
            f"a prior over data sets has sites x and y, this one has {sorted(choices)}"
        )
    return choices["x"], choices["y"]
