"""The demo's particle filter written out by hand in JAX: what the framework is measured against.

The same law, order of operations and stored results as `inference.SMC` on the program of
`feynkac/cli/story.py`, and the same decoder (`lm.advance`), without programs, traces or targets:
guided draws by a two-level inverse cumulative sum, log-weight increments, one decision a step to
resample by systematic resampling, gathers of the suffix caches, ends of text, lineages at the end.
Keys are used differently, so runs agree in law and not draw by draw.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp


class Run(NamedTuple):
    """What a run leaves: texts [N, T], weights [N] and the diagnostics of each step."""

    tokens: jax.Array
    lengths: jax.Array
    ended: jax.Array
    log_weights: jax.Array
    log_evidence: jax.Array
    ancestors: jax.Array
    resampled: jax.Array
    ess: jax.Array
    log_evidences: jax.Array


def block_size(n):
    """The power of two next above the square root."""
    return 1 << (((n - 1).bit_length() + 1) // 2)


def first_above(weights, u):
    """Index of the first positive weight whose cumulative sum exceeds u x total."""
    cumulative = jnp.cumsum(weights)
    positive = weights > 0
    above = positive & (cumulative > u * cumulative[-1])
    last = weights.shape[0] - 1 - jnp.argmax(positive[::-1])
    return jnp.where(above.any(), jnp.argmax(above), last).astype(jnp.int32)


def draw(key, logits):
    """A token from softmax(logits), and the log of the normalizer."""
    size = block_size(logits.shape[0])
    top = jnp.max(logits)
    top = jnp.where(top == -jnp.inf, 0.0, top)
    weights = jnp.exp(logits - top)
    blocks = jnp.pad(weights, (0, -weights.shape[0] % size)).reshape(-1, size)
    sums = blocks.sum(1)
    u = jax.random.uniform(key, (2,))
    block = first_above(sums, u[0])
    token = block * size + first_above(blocks[block], u[1])
    total = sums.sum()
    dead = total == 0
    return jnp.where(dead, 0, token), jnp.where(dead, -jnp.inf, jnp.log(total) + top)


def log_normalizer(logits):
    """Log of the sum of exp(logits)."""
    top = jnp.max(logits)
    return jnp.log(jnp.sum(jnp.exp(logits - top))) + top


def effective_size(log_weights):
    """(sum w)^2 / sum w^2; 0 if all weights are zero."""
    top = jnp.max(log_weights)
    weights = jnp.exp(log_weights - jnp.where(top == -jnp.inf, 0.0, top))
    square = jnp.sum(weights * weights)
    return jnp.sum(weights) ** 2 / jnp.where(square == 0, 1.0, square)


def log_mean(log_weights):
    """Log of the mean weight, nats."""
    return jax.nn.logsumexp(log_weights) - jnp.log(float(log_weights.shape[0]))


def systematic(key, log_weights):
    """Ancestors [N]: the points j + U in the cumulative weights."""
    n = log_weights.shape[0]
    cumulative = jnp.cumsum(jnp.exp(log_weights - jnp.max(log_weights)))
    points = (jnp.arange(n, dtype=float) + jax.random.uniform(key, ())) / n * cumulative[-1]
    index = jnp.searchsorted(cumulative, points, side="right")
    return jnp.minimum(index, n - 1).astype(jnp.int32)


def read_back(ancestors, tokens):
    """Tokens [T, N] as they were drawn, along the lineages of the final particles: [N, T]."""

    def back(index, row):
        parents, drawn = row
        return parents[index], drawn[index]

    last = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    return jax.lax.scan(back, last, (ancestors, tokens), reverse=True)[1].T


def filtered(key, n, length, threshold, start, move, ended):
    """The loop: `start` is the particles' state [N, ...], `move(keys, state, t)` a step of all.

    `move` returns the new state, the tokens drawn and the log-weight increments; `ended(state)`
    says which particles have ended (None: none ever does).
    """
    identity = jnp.arange(n, dtype=jnp.int32)

    def all_ended(state):
        return jnp.zeros((), bool) if ended is None else jnp.all(ended(state))

    def body(carry):
        t, state, log_weights, lengths, tokens, ancestors, resampled, ess, evidence = carry
        key_t = jax.random.fold_in(key, t)
        size = effective_size(log_weights)
        wanted = (size > 0) & (size < threshold * n) & ~all_ended(state)

        def resample(state, log_weights, lengths):
            parents = systematic(key_t, log_weights)
            state, lengths = jax.tree.map(lambda x: x[parents], (state, lengths))
            return state, jnp.full_like(log_weights, log_mean(log_weights)), lengths, parents

        def keep(state, log_weights, lengths):
            return state, log_weights, lengths, identity

        state, log_weights, lengths, parents = jax.lax.cond(
            wanted, resample, keep, state, log_weights, lengths
        )
        active = jnp.ones(n, bool) if ended is None else ~ended(state)
        keys = jax.vmap(lambda i: jax.random.fold_in(key_t, i))(identity + 1)
        state, drawn, increments = move(keys, state, t)
        log_weights = log_weights + jnp.where(active, increments, 0.0)
        return (
            t + 1,
            state,
            log_weights,
            lengths + active.astype(jnp.int32),
            tokens.at[t].set(jnp.where(active, drawn, 0)),
            ancestors.at[t].set(parents),
            resampled.at[t].set(wanted),
            ess.at[t].set(effective_size(log_weights)),
            evidence.at[t].set(log_mean(log_weights)),
        )

    def going(carry):
        return (carry[0] < length) & ~all_ended(carry[1])

    carry = (
        jnp.zeros((), jnp.int32),
        start,
        jnp.zeros(n),
        jnp.zeros(n, jnp.int32),
        jnp.zeros((length, n), jnp.int32),
        jnp.broadcast_to(identity, (length, n)),
        jnp.zeros(length, bool),
        jnp.full(length, jnp.nan),
        jnp.full(length, jnp.nan),
    )
    if ended is None:
        carry, _ = jax.lax.scan(lambda c, _: (body(c), None), carry, length=length)
    else:
        carry = jax.lax.while_loop(going, body, carry)
    return carry[1:]


def _finish(log_weights, lengths, ended, tokens, ancestors, rest):
    return Run(
        read_back(ancestors, tokens),
        lengths,
        ended,
        log_weights,
        log_mean(log_weights),
        ancestors,
        *rest,
    )


@eqx.filter_jit
def steered(key, lm, prefix, temperature, allowed, reward, n, length, threshold=0.5, reject=False):
    """The guided filter of the demo; `allowed` and `reward` are tables [V] over tokens.

    With `reject` texts that have not ended after `length` tokens weigh nothing.
    """
    state = jax.vmap(lambda _: lm.start(prefix, length))(jnp.arange(n))

    def propose(key, logits):
        logits = logits / temperature
        guided = jnp.where(allowed > 0, logits + reward, -jnp.inf)
        token, guided_mass = draw(key, guided)
        # reward + log p(token) - log q(token): the token's own terms cancel.
        return token, guided_mass - log_normalizer(logits)

    def move(keys, state, t):
        model, ended = state
        tokens, increments = jax.vmap(propose)(keys, model.logits)
        model = jax.vmap(lm.advance, in_axes=(None, 0, 0, None))(prefix, model, tokens, t)
        return (model, ended | (tokens == lm.eos)), tokens, increments

    (_, ended), log_weights, lengths, tokens, ancestors, *rest = filtered(
        key, n, length, threshold, (state, jnp.zeros(n, bool)), move, lambda state: state[1]
    )
    if reject:
        log_weights = jnp.where(ended, log_weights, -jnp.inf)
    return _finish(log_weights, lengths, ended, tokens, ancestors, rest)


@eqx.filter_jit
def sampled(key, lm, prefix, temperature, n, length):
    """Plain generation: N texts drawn from the model, no weights and no resampling."""
    state = jax.vmap(lambda _: lm.start(prefix, length))(jnp.arange(n))

    def body(carry):
        t, model, ended, lengths, tokens = carry
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, t), i))(jnp.arange(n))
        drawn, _ = jax.vmap(draw)(keys, model.logits / temperature)
        model = jax.vmap(lm.advance, in_axes=(None, 0, 0, None))(prefix, model, drawn, t)
        tokens = tokens.at[t].set(jnp.where(ended, 0, drawn))
        return t + 1, model, ended | (drawn == lm.eos), lengths + (~ended).astype(jnp.int32), tokens

    carry = (
        jnp.zeros((), jnp.int32),
        state,
        jnp.zeros(n, bool),
        jnp.zeros(n, jnp.int32),
        jnp.zeros((length, n), jnp.int32),
    )
    carry = jax.lax.while_loop(lambda c: (c[0] < length) & ~jnp.all(c[2]), body, carry)
    return carry[4].T, carry[3]


@partial(jax.jit, static_argnames=("n", "length"))
def fixed_table(key, logits, bonus, n, length, threshold=0.5):
    """Bootstrap filter: tokens from softmax(logits), whatever came before; potential bonus."""

    def move(keys, state, t):
        tokens, _ = jax.vmap(lambda key: draw(key, logits))(keys)
        return tokens, tokens, bonus[tokens]

    last, log_weights, lengths, tokens, ancestors, *rest = filtered(
        key, n, length, threshold, jnp.zeros(n, jnp.int32), move, None
    )
    return _finish(log_weights, lengths, jnp.zeros(n, bool), tokens, ancestors, rest)
