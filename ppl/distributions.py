"""Distributions at sites: NumPyro's as they are, and `Token` for large vocabularies."""

import contextlib
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray
from numpyro.distributions import constraints

from .inverse_cdf import inverse_cdf, inverse_counts
from .keys import plain_key

# Up to here a vocabulary is drawn from by comparisons alone.
_FEW = 16


class Token(dist.Distribution):
    """A categorical distribution made for vocabularies: masked, drawn with two uniforms.

    `logits` [..., V] are unnormalised, nats; tokens where `mask` [..., V] is false, or whose
    logit is -inf, have probability zero and are never drawn. A draw inverts the cumulative sum: in
    whole numbers of 2^-32 for up to 16 tokens; for more in two levels, block and token within the
    block, with independent uniforms, so that float32's 23 bits limit neither (tokens of
    probability below 1e-6 come up at their rate). If every token is masked the distribution is
    empty: the draw is token 0 with log-probability -inf, which gives a particle weight zero.
    """

    arg_constraints = {}  # -inf forbids a token, and NaN is passed on for the run to report
    pytree_data_fields = ("logits", "_mask")
    has_enumerate_support = True

    def __init__(
        self,
        logits: Float[Array, "*batch v"],
        mask: Bool[Array, "*#batch v"] | None = None,
        *,
        validate_args=None,
    ):
        logits = jnp.asarray(logits)
        if logits.ndim == 0 or logits.shape[-1] == 0:
            raise ValueError(
                f"Token needs logits of shape [..., vocabulary] with a non-empty vocabulary, got "
                f"{logits.shape}"
            )
        if mask is not None and jnp.shape(mask)[-1:] != logits.shape[-1:]:
            raise ValueError(
                f"the mask has shape {jnp.shape(mask)} but the logits {logits.shape}: give one "
                "boolean a token"
            )
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(f"Token needs floating-point logits, got {logits.dtype}")
        self.logits = logits
        self._mask = None if mask is None else jnp.asarray(mask, bool)
        super().__init__(batch_shape=logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)  # pyright: ignore[reportArgumentType]
    def support(self):
        """Tokens 0 .. V-1."""
        return constraints.integer_interval(0, self.logits.shape[-1] - 1)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes of the logits; not stored, so that `vmap` over a Token sees its own."""
        return jnp.shape(self.logits)[:-1]

    def tree_flatten(self):
        """Logits and mask are leaves, nothing is static."""
        return (self.logits, self._mask), None

    @classmethod
    def tree_unflatten(cls, aux_data, params):
        """Rebuild without checks: the leaves may be placeholders."""
        token = cls.__new__(cls)
        token.logits, token._mask = params
        token._batch_shape, token._event_shape, token._validate_args = (), (), False
        return token

    def _allowed(self):
        """Logits, in float32 at least, -inf where masked."""
        dtype = jnp.finfo(
            jnp.float32 if self.logits.dtype.itemsize < 4 else self.logits.dtype
        ).dtype
        logits = self.logits.astype(dtype)
        if self._mask is not None:
            mask = jnp.broadcast_to(self._mask, logits.shape)
            logits = jnp.where(mask, logits, -jnp.inf)
        return logits

    def _blocks(self, logits):
        """Weights in blocks [..., blocks, size] relative to the largest logit, and that logit."""
        top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        top = jnp.where(jnp.isneginf(top), jnp.zeros_like(top), top)
        weights = jnp.exp(logits - top)
        n = weights.shape[-1]
        size = _block_size(n)
        pad = [(0, 0)] * (weights.ndim - 1) + [(0, -n % size)]
        blocks = jnp.pad(weights, pad).reshape(*weights.shape[:-1], -1, size)
        return blocks, top[..., 0]

    @property
    def log_normalizer(self) -> Float[Array, "*batch"]:
        """Log of the sum of exp(logits) over the unmasked tokens, nats."""
        log_sum, top = self._log_sum(self._allowed())
        return log_sum + top

    def _few(self, logits):
        """A weight a token [...] relative to the largest logit, and that logit."""
        columns = [logits[..., j] for j in range(logits.shape[-1])]
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, columns))
        top = jnp.where(jnp.isneginf(top), jnp.zeros_like(top), top)
        return [jnp.exp(x - top) for x in columns], top

    def _log_sum(self, logits):
        """Log of the sum of exp(logits - top), and top: far from zero they do not add exactly."""
        if logits.shape[-1] <= _FEW:
            weights, top = self._few(logits)
            sums = sum(weights[1:], weights[0])
        else:
            blocks, top = self._blocks(logits)
            sums = blocks.sum(-1).sum(-1)
        empty = sums == 0
        return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, sums))), top

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Int[Array, "..."]:
        """Draws [sample_shape, batch], int32."""
        logits = self._allowed()
        if logits.shape[-1] <= _FEW:
            shape = (*sample_shape, *self.batch_shape)
            kind = jnp.uint64 if logits.dtype.itemsize == 8 else jnp.uint32
            bits = jax.random.bits(key, shape, kind)
            return inverse_counts([jnp.broadcast_to(w, shape) for w in self._few(logits)[0]], bits)
        blocks, _ = self._blocks(logits)
        sums = blocks.sum(-1)
        empty = sums.sum(-1) == 0

        def one(u):
            block = inverse_cdf(sums, u[0])
            inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
            token = block * blocks.shape[-1] + inverse_cdf(inside, u[1])
            return jnp.where(empty, jnp.zeros_like(token), token)

        n = math.prod(sample_shape)
        u = jax.random.uniform(key, (n, 2, *self.batch_shape), dtype=blocks.dtype)
        if n == 1:
            return one(u[0]).reshape(*sample_shape, *self.batch_shape)
        return jax.vmap(one)(u).reshape(*sample_shape, *self.batch_shape)

    def log_prob(self, value: Int[ArrayLike, "..."], intermediates=None) -> Float[Array, "..."]:
        """Log-probability in nats; -inf for what is masked, no token, or of an empty law."""
        logits = self._allowed()
        value = jnp.asarray(value)
        shape = jnp.broadcast_shapes(value.shape, self.batch_shape)
        index = jnp.broadcast_to(value, shape)[..., None]
        n = logits.shape[-1]
        inside = (index[..., 0] >= 0) & (index[..., 0] < n)
        log_sum, top = (jnp.broadcast_to(x, shape) for x in self._log_sum(logits))
        if n <= _FEW:
            at = jnp.broadcast_to(logits[..., 0], shape)
            for j in range(1, n):
                at = jnp.where(index[..., 0] == j, jnp.broadcast_to(logits[..., j], shape), at)
        else:
            logits = jnp.broadcast_to(logits, shape + (n,))
            at = jnp.take_along_axis(logits, index, axis=-1, mode="clip")[..., 0]
        possible = inside & ~jnp.isneginf(at)
        # The second `where` keeps gradients free of inf - inf.
        safe = jnp.where(possible, at - top - log_sum, 0.0)
        return jnp.where(possible, safe, -jnp.inf)

    def enumerate_support(self, expand: bool = True) -> Int[Array, "v *batch"]:
        """All tokens along a new leading axis."""
        n = self.logits.shape[-1]
        values = jnp.arange(n, dtype=jnp.int32).reshape((n,) + (1,) * len(self.batch_shape))
        return jnp.broadcast_to(values, (n, *self.batch_shape)) if expand else values


def _block_size(n: int) -> int:
    size = 1
    while size * size < n:
        size *= 2
    return size


def third_party(fn):
    """Run under JAX's standard promotion, which some NumPyro distributions need."""

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
            return fn(*args, **kwargs)

    return wrapped


# What draws by inverting or comparing uniforms. Others may call for JAX's own kind of key (Poisson)
# or be slow without it (gamma variates).
_DIRECT = frozenset(
    (
        Token,
        dist.Normal,
        dist.Uniform,
        dist.Exponential,
        dist.Laplace,
        dist.Logistic,
        dist.Cauchy,
        dist.Gumbel,
        dist.MultivariateNormal,
        dist.BernoulliProbs,
        dist.BernoulliLogits,
        dist.CategoricalProbs,
        dist.CategoricalLogits,
        dist.DiscreteUniform,
        dist.Delta,
    )
)


def _draws_directly(d: Any) -> bool:
    while hasattr(d, "base_dist"):  # independent, expanded, masked, transformed
        d = d.base_dist
    return type(d) in _DIRECT


@third_party
def draw(d: dist.Distribution, key: PRNGKeyArray) -> Array:
    """One draw, of shape batch + event."""
    return jnp.asarray(d.sample(key if _draws_directly(d) else plain_key(key)))


@third_party
def drawn_like(d: dist.Distribution) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a draw."""
    return jax.eval_shape(d.sample, jax.random.key(0))


@third_party
def log_density(d: dist.Distribution, value: Array, *, check: bool) -> Float[Array, ""]:
    """Log density summed over the batch, nats; with `check` -inf off the support, else of draws."""
    support: Any = d.support
    if not check:
        density = jnp.sum(d.log_prob(value))
        # NumPyro calls NaN impossible; drawn, it means that a parameter was NaN.
        if jnp.issubdtype(value.dtype, jnp.inexact):
            density = jnp.where(jnp.any(jnp.isnan(value)), jnp.nan, density)
        return density
    if not _checkable(support):
        return jnp.sum(d.log_prob(value))
    inside = support(value)
    # The inside of the support stands in for a value outside, so that no gradient is NaN.
    event = (1,) * (jnp.ndim(value) - jnp.ndim(inside))
    safe = jnp.where(inside.reshape(inside.shape + event), value, support.feasible_like(value))
    if isinstance(d, dist.MaskedDistribution):
        inside = inside | ~jnp.asarray(d._mask, bool)
    # One choice for all: what is inside may be data, and the density a large batch of particles'.
    return jnp.where(jnp.all(inside), jnp.sum(d.log_prob(safe)), -jnp.inf)


def _checkable(support) -> bool:
    """Scalar supports but the whole line: tests such as 'is a simplex' depend on rounding."""
    while hasattr(support, "base_constraint"):  # an event of independent scalars
        support = support.base_constraint
    return (
        support is not None
        and getattr(support, "event_dim", 1) == 0
        and support is not constraints.real
    )


@third_party
def finite_support(d: dist.Distribution) -> Array | None:
    """All values of a draw along a new leading axis (over the batch their product), or None."""
    if not d.has_enumerate_support:
        return None
    try:
        values = d.enumerate_support(expand=False)
    except NotImplementedError:
        return None
    like = drawn_like(d)
    size, n = values.shape[0], max(1, math.prod(d.batch_shape))
    flat = (
        values.reshape(size, *d.event_shape)
        if math.prod(values.shape[1:]) == math.prod(d.event_shape)
        else None
    )
    if flat is None:
        return None
    digits = jnp.stack(jnp.meshgrid(*[jnp.arange(size)] * n, indexing="ij"), -1).reshape(-1, n)
    return flat[digits].reshape(-1, *like.shape).astype(like.dtype)
