"""The Distribution Transformer: a prior and data in, a posterior in the prior's form out.

Whittle, Ziomek, Rawling and Osborne (2025), "Distribution Transformers: fast approximate Bayesian
inference with on-the-fly prior adaptation", arXiv 2502.02463, section 3: component tokens attend to
each other and to the data, without positions. Ours: a mixture's tokens are read out relative to the
component they came from, and one token of the data is always there, so that there may be none.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ...inference.vi.guides.guide import guided
from ...inference.vi.guides.layout import Constant, Layout
from ...ppl.code import Code
from ...ppl.program import Program
from ...ppl.proposal import Proposal
from ..network import Network
from .decoder import Decoder
from .meta_prior import MetaPrior
from .mixtures import Mixture, MixtureLaw


class Belief(eqx.Module):
    """What a Distribution Transformer says: mixtures over the coordinates of the latent sites.

    - `posterior`: the approximate posterior; a valid next prior.
    - `prior`: the prior, as a mixture (for a mixture the network's copy of it).
    - `outside`: was the network not trained for such a prior or such data?
    """

    posterior: Mixture
    prior: Mixture
    outside: Bool[Array, "*batch"]
    layout: Layout = eqx.field(static=True)

    @property
    def program(self) -> Program:
        """The posterior as a program with the latent sites: a guide."""
        return guided(MixtureLaw(self.posterior.loc, self.posterior), self.layout)

    def proposal(self, share: float = 0.1, scale: float = 2.0) -> Proposal:
        """A proposal of the latent sites: the posterior with a share of it made wider.

        Importance sampling with it is properly weighted for the program's own posterior, whatever
        the network's error; see `Mixture.defended`.
        """
        law = self.posterior.defended(share, scale)
        return Proposal(init=guided(MixtureLaw(law.loc, law), self.layout))

    def log_prob(self, choices: Mapping[str, Any]) -> Float[Array, ""]:
        """Log posterior density of values of the latent sites, nats."""
        position = self.layout.position(dict(choices))
        return self.posterior.log_prob(position) - self.layout.choices(position)[1]

    def sample(self, key: PRNGKeyArray, n: int) -> dict[str, Any]:
        """So many draws of the latent sites."""
        return jax.vmap(lambda u: self.layout.choices(u)[0])(self.posterior.sample(key, (n,)))


class DistributionTransformer(eqx.Module):
    """A network from (prior, data) to a `Belief`, for one problem: `jax.vmap` it over many.

    Invariant under permutations of components and of observations; the numbers of both may differ
    from those in training. Made by `distribution_transformer`, trained with `PosteriorLoss`.
    """

    net: Network
    prior_features: Code
    data_features: Code
    layout: Layout = eqx.field(static=True)
    ranges: Constant = eqx.field(static=True)

    def __call__(
        self,
        prior: PyTree,
        data: Mapping[str, Array],
        observed: Mapping[str, Bool[Array, " n"]] | None = None,
    ) -> Belief:
        """The posterior.

        Args:
            prior: a `Mixture` over the latent coordinates, or the parameters, as trained on.
            data: from a source's name to observations [n, ...], n >= 0.
            observed: which of them count; the values of others are not read.

        Raises:
            ValueError: a prior or data of another make than the network was trained on.
        """
        tokens, frame = _prior_tokens(prior, self.prior_features)
        rows = _data_tokens(data, self.data_features)
        self._check(frame, tokens, rows)
        observed = {} if observed is None else dict(observed)
        masks = {s: observed.get(s, jnp.ones(x.shape[:1], bool)) for s, x in rows.items()}
        rows = {s: jnp.where(masks[s][:, None], x, jnp.zeros_like(x)) for s, x in rows.items()}
        first, last = self.net(tokens, rows, masks)
        prior_mixture, posterior = (_mixture(x, self.layout.size, frame) for x in (first, last))
        return Belief(
            posterior, prior_mixture, self._outside(tokens, frame, rows, masks), self.layout
        )

    @property
    def validity(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Lowest and highest seen in training: features of priors, of data, numbers of data."""
        return jax.tree.map(np.asarray, self.ranges.tree)

    def _check(self, frame, tokens, rows):
        ranges = self.ranges.tree
        kind, n = _kind(frame), _summary(tokens, frame).size
        if kind not in ranges or ranges[kind][0].size != n:
            known = next(name for name in ("mixture", "parameters") if name in ranges)
            raise ValueError(
                f"this network was trained on a {known} prior of {ranges[known][0].size} numbers, "
                f"this one is {kind} of {n}: give a prior of the trained family (`spread` makes a "
                "mixture of draws), or train on this one"
            )
        sources = {name[5:]: low.shape for name, (low, _) in ranges.items() if name[:5] == "data "}
        if sources != {name: x.shape[1:] for name, x in rows.items()}:
            raise ValueError(
                f"this network was trained on data with features {sources}, got "
                f"{ {name: x.shape[1:] for name, x in rows.items()} }: give all sources by these "
                "names, [n, ...]; n may be 0"
            )

    def _outside(self, tokens, frame, rows, masks):
        ranges = self.ranges.tree

        def within(name, x):
            low, high = (jnp.broadcast_to(r.astype(x.dtype), x.shape) for r in ranges[name])
            return (x >= low) & (x <= high)

        inside = [jnp.all(within(_kind(frame), _summary(tokens, frame)))]
        for name, x in rows.items():
            inside.append(jnp.all(within(f"data {name}", x) | ~masks[name][:, None]))
            inside.append(within(f"number {name}", jnp.sum(masks[name]).astype(x.dtype)))
        return ~jnp.all(jnp.stack(inside))


def distribution_transformer(
    key: PRNGKeyArray,
    task: MetaPrior,
    *,
    components: int = 5,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    examples: int = 4096,
) -> DistributionTransformer:
    """An untrained network for a meta-prior's problems.

    Args:
        key: of the weights, and of the examples that scales and ranges are taken from.
        task: where the problems come from.
        components: of the posterior for priors that are no mixtures; a mixture keeps its number.
        width: of tokens; four times as much in the perceptrons.
        layers: of the decoder.
        heads: of attention.
        examples: how many problems to look at; inputs beyond all of theirs are flagged later.
    """
    key_net, key_examples = jax.random.split(key)
    problem = jax.jit(jax.vmap(task.draw))(jax.random.split(key_examples, examples))
    mixture = isinstance(problem.prior, Mixture)

    def read(problem):
        tokens, frame = _prior_tokens(problem.prior, task.prior_features)
        return tokens, _summary(tokens, frame), _data_tokens(problem.data, task.data_features)

    tokens, summary, rows = jax.jit(jax.vmap(read))(problem)
    masks = problem.observed or {}
    kind = "mixture" if mixture else "parameters"
    ranges, scales = {kind: (summary.min(0), summary.max(0))}, {}
    for name, x in rows.items():
        mask = masks.get(name, jnp.ones(x.shape[:2], bool))
        seen = np.asarray(x)[np.asarray(mask)]
        ranges[f"data {name}"] = (seen.min(0), seen.max(0))
        number = np.sum(np.asarray(mask), 1).astype(seen.dtype)
        ranges[f"number {name}"] = (number.min(), number.max())
        scales[name] = (seen.mean(0), seen.std(0))
    flat = np.asarray(tokens).reshape(-1, tokens.shape[-1])
    position = np.asarray(problem.position)
    latent = None if mixture else (position.mean(0), position.std(0))
    sizes = (task.layout.size, components, width, layers, heads)
    graphs = []

    @jax.jit
    def build(key):
        scale = (flat.mean(0), flat.std(0))
        graph, variables = nnx.split(Decoder(nnx.Rngs(key), scale, scales, latent, *sizes))
        graphs.append(graph)
        return variables

    variables = build(key_net)
    return DistributionTransformer(
        Network(graphs[0], variables),
        task.prior_features,
        task.data_features,
        task.layout,
        Constant(ranges),
    )


def _prior_tokens(prior, features):
    """What is read of a prior: [k, p] and the mixture, or [1, p] and None."""
    if not isinstance(prior, Mixture):
        return features(prior)[None], None
    d = prior.size
    diagonal = jnp.log(jnp.diagonal(prior.factors, axis1=-2, axis2=-1))
    lower = prior.factors[:, *np.tril_indices(d, -1)]
    whole = prior.log_weights[:, None]
    return jnp.concatenate([whole, prior.means, diagonal, lower], axis=-1), prior


def _kind(frame):
    return "parameters" if frame is None else "mixture"


def _data_tokens(data, features):
    if not isinstance(data, Mapping) or any(jnp.ndim(x) == 0 for x in data.values()):
        raise ValueError("data is a dict from the name of a source to an array [n, ...]")
    return {name: jax.vmap(lambda x, s=name: features(s, x))(x) for name, x in sorted(data.items())}


def _summary(tokens, frame):
    """What ranges are about: parameters' features, or moments and extremes of a mixture."""
    if frame is None:
        return tokens[0]
    log_sd = 0.5 * jnp.log(jnp.diagonal(frame.cov))
    least = jnp.min(jnp.diagonal(frame.factors, axis1=-2, axis2=-1), axis=0)
    return jnp.concatenate([frame.loc, log_sd, jnp.log(least)])


def _mixture(numbers, d, frame):
    """The mixture that a network's output [k, 1 + 2 d + d (d - 1) / 2] stands for."""
    logits, means, diagonal, lower = jnp.split(numbers, [1, 1 + d, 1 + 2 * d], axis=-1)
    logits, bound = logits[:, 0], 7.0
    factors = jnp.exp(bound * jnp.tanh(diagonal / bound))[:, :, None] * jnp.eye(d)[None]
    factors = factors.at[:, *np.tril_indices(d, -1)].set(lower)
    if frame is None:
        return Mixture(logits, means, factors)
    moves = jnp.einsum("kij,kj->ki", frame.factors, means)
    return Mixture(frame.log_weights + logits, frame.means + moves, frame.factors @ factors)
