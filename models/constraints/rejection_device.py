"""The forms of adaptive weighted rejection sampling as compiled loops, for checks in JAX.

The same runs as in `rejection_forms`, where they are derived. What was rejected is a short list,
so that the loop carries no array of the vocabulary's size.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...ppl.inverse_cdf import inverse_cdf
from .rejection_forms import Geometric, Recursive


class _Left(eqx.Module):
    """Tokens with weights in `blocks`, without those `removed`; `sums` of what is left."""

    blocks: Float[Array, "B S"]
    sums: Float[Array, "B"]
    removed: Int[Array, "limit"]

    @staticmethod
    def whole(blocks: Float[Array, "B S"], limit: int) -> "_Left":
        return _Left(blocks, blocks.sum(1), jnp.full(limit, -1, jnp.int32))

    @property
    def mass(self) -> Array:
        return self.sums.sum()

    def row(self, block: Array) -> Array:
        size = self.blocks.shape[1]
        tokens = block * size + jnp.arange(size, dtype=jnp.int32)
        gone = jnp.any(tokens[:, None] == self.removed[None, :], axis=1)
        return jnp.where(gone, 0.0, self.blocks[block])

    def draw(self, key: PRNGKeyArray) -> Array:
        u = jax.random.uniform(key, (2,), dtype=self.sums.dtype)
        block = inverse_cdf(self.sums, u[0]).astype(jnp.int32)
        inside = inverse_cdf(self.row(block), u[1]).astype(jnp.int32)
        return block * self.blocks.shape[1] + inside

    def without(self, token: Array, place: Array) -> "_Left":
        """The token taken out, as number `place` of the list."""
        less = _Left(self.blocks, self.sums, self.removed.at[place].set(token))
        block = token // self.blocks.shape[1]
        return _Left(self.blocks, self.sums.at[block].set(less.row(block).sum()), less.removed)

    def weight(self, token: Array) -> Array:
        return self.blocks[token // self.blocks.shape[1], token % self.blocks.shape[1]]


class _Run(eqx.Module):
    """A run under way: `sums` and `removed` of `_Left`, counts, the token, and whether it ended."""

    sums: Array
    removed: Array
    round: Array
    rejects: Array
    passed: Array
    token: Array
    ended: Bool[Array, ""]


def run_on_device(
    form: Recursive | Geometric,
    key: PRNGKeyArray,
    blocks: Float[Array, "B S"],
    check: Callable[[Array], Array],
    limit: int,
    retained: Int[Array, ""] | None,
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """A run of the form: its token, and Z-hat (0 if there is none or it does not pass)."""
    if isinstance(form, Recursive):
        token, z = _recursive(form, key, blocks, check, limit, retained)
    else:
        token, z = _geometric(form, key, blocks, check, limit, retained)
    whole = blocks.sum()
    z = jnp.where(whole > 0, z, jnp.where(jnp.isnan(whole), jnp.nan, 0.0))
    if retained is None:
        return token, z
    return retained, jnp.where(check(retained), z, jnp.zeros_like(z))


def _begin(blocks: Array, slots: int, passed: int, token: Array) -> _Run:
    left = _Left.whole(blocks, slots)
    zero = jnp.int32(0)
    ended = ~(left.mass > 0)
    return _Run(left.sums, left.removed, zero, zero, jnp.int32(passed), token, ended)


def _recursive(form: Recursive, key, blocks, check, limit, retained):
    slots = min(limit, blocks.size) + 1
    key_loop, key_more = jax.random.split(key)

    def body(run: _Run) -> _Run:
        left = _Left(blocks, run.sums, run.removed)
        token = left.draw(jax.random.fold_in(key_loop, run.round))
        stay = jnp.zeros((), bool) if retained is None else run.rejects + 1 == limit
        good = check(token) | stay
        less = left.without(token, run.rejects)
        sums = jnp.where(good, run.sums, less.sums)
        removed = jnp.where(good, run.removed, less.removed)
        rejects = jnp.where(good, run.rejects, run.rejects + 1)
        passed = good.astype(jnp.int32)
        over = good | (rejects == limit) | ~(sums.sum() > 0)
        return _Run(sums, removed, run.round + 1, rejects, passed, token, over)

    run = jax.lax.while_loop(lambda run: ~run.ended, body, _begin(blocks, slots, 0, jnp.int32(0)))
    left = _Left(blocks, run.sums, run.removed)
    mass = left.mass / blocks.sum(1).sum()
    final = run.rejects + 1 == limit
    x = run.token if retained is None else retained
    other = run.token != x
    rest = left.without(x, jnp.int32(slots - 1))
    keys = jax.random.split(key_more, form.checks)
    free = jnp.arange(form.checks) >= other.astype(jnp.int32)
    passes = jax.vmap(lambda k: check(rest.draw(k)))(keys)
    passes = jnp.where(free, passes, True).astype(mass.dtype).mean()
    share = jnp.minimum(left.weight(x) / left.mass, 1.0)
    full = mass * jnp.where(rest.mass > 0, share + (1 - share) * passes, 1.0)
    z = jnp.where(final, mass, full)
    return x, jnp.where(run.passed > 0, z, jnp.zeros_like(z))


def _geometric(form: Geometric, key, blocks, check, limit, retained):
    slots = min(limit, blocks.size)
    first = jnp.int32(-1) if retained is None else retained
    whole = blocks.sum(1).sum()

    def body(run: _Run) -> _Run:
        left = _Left(blocks, run.sums, run.removed)
        key_repeats, key_draw = jax.random.split(jax.random.fold_in(key, run.round))
        hit = jnp.minimum(left.mass / whole, 1.0)
        u = jax.random.uniform(key_repeats, dtype=hit.dtype, minval=jnp.finfo(hit.dtype).tiny)
        repeats = jnp.where(hit < 1, jnp.log(u) / jnp.log1p(-hit), 0.0)
        repeats = jnp.minimum(jnp.floor(repeats), float(limit)).astype(jnp.int32)
        rejects = jnp.minimum(run.rejects + repeats, limit)
        cut = rejects == limit
        token = left.draw(key_draw)
        good = check(token) & ~cut
        bad = ~good & ~cut
        less = left.without(token, jnp.sum((run.removed >= 0).astype(jnp.int32)))
        sums = jnp.where(bad, less.sums, run.sums)
        removed = jnp.where(bad, less.removed, run.removed)
        rejects = rejects + bad.astype(jnp.int32)
        passed = run.passed + good.astype(jnp.int32)
        x = jnp.where(good & (run.token < 0), token, run.token)
        over = (passed == form.accepts) | (rejects == limit) | ~(sums.sum() > 0)
        return _Run(sums, removed, run.round + 1, rejects, passed, x, over)

    start = _begin(blocks, slots, int(retained is not None), first)
    run = jax.lax.while_loop(lambda run: ~run.ended, body, start)
    counts = jnp.maximum(run.passed + run.rejects - 1, 1)
    z = jnp.minimum(run.passed, form.accepts - 1).astype(whole.dtype) / counts.astype(whole.dtype)
    done = (run.passed == form.accepts) | (run.rejects == limit)
    return jnp.maximum(run.token, 0), jnp.where(done, z, jnp.zeros_like(z))
