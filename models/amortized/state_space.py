"""Sequence models with a state of constant size: diagonal S4, and Mamba's selective form.

Diagonal, linear and time-invariant: Gu, Gupta, Goel and Re (2022), "On the parameterization and
initialization of diagonal state space models" (S4D-Lin, zero-order hold). Selective: Gu and Dao
(2023), "Mamba", algorithm 2. Both are h_t = a_t h_{t-1} + b_t, by a parallel scan over the sequence
or step by step. Resets inside a sequence, so that several may be packed into one: Lu, Schroecker,
Gu, Parisotto, Foerster, Singh and Behbahani (2023), "Structured state space models for in-context
reinforcement learning", section 3; here a_t = 0 where a new one starts.
"""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from .layers import layer_norm, linear


class Recurrence(nnx.Module):
    """A bank of diagonal recurrences, `states` for each of `width` channels."""

    width: int
    states: int

    @abc.abstractmethod
    def elements(self, u: Float[Array, "*t width"]) -> tuple[Array, Array]:
        """a_t and b_t [*t, width, states] for inputs u_t."""

    @abc.abstractmethod
    def read(self, state: Array, u: Float[Array, "*t width"]) -> Float[Array, "*t width"]:
        """Outputs of states [*t, width, states]."""

    def __call__(
        self, u: Float[Array, "*b t width"], reset: Bool[Array, "*b t"] | None = None
    ) -> Float[Array, "*b t width"]:
        """The whole sequence at once; where `reset`, the state before is forgotten."""
        decay, drive = self.elements(u)
        if reset is not None:
            decay = jnp.where(reset[..., None, None], jnp.zeros_like(decay), decay)
        _, states = jax.lax.associative_scan(_after, (decay, drive), axis=u.ndim - 2)
        return self.read(states, u)

    def step(self, state: Array, u: Float[Array, "*b width"]) -> tuple[Array, Array]:
        """The next state, and the output: the same numbers, one input at a time."""
        decay, drive = self.elements(u)
        state = decay * state + drive
        return state, self.read(state, u)

    def start(self, *batch: int) -> Array:
        """The state before anything came."""
        like = jnp.zeros((*batch, self.width), float)
        return jnp.zeros_like(self.elements(like)[1])


class Diagonal(Recurrence):
    """S4D: the same complex decays at each step, so a bank of damped oscillations."""

    def __init__(self, width: int, states: int = 8, *, rngs: nnx.Rngs):
        self.width, self.states = width, states
        low, high = math.log(1e-2), math.log(0.5)
        self.log_step = nnx.Param(jax.random.uniform(rngs(), (width, 1), float, low, high))
        self.log_decay = nnx.Param(jnp.full((width, states), math.log(0.5)))
        turns = jnp.pi * jnp.arange(states, dtype=float)
        self.frequency = nnx.Param(jnp.broadcast_to(turns, (width, states)))
        self.readout = nnx.Param(jax.random.normal(rngs(), (2, width, states)) / math.sqrt(states))
        self.skip = nnx.Param(jnp.ones(width))

    def elements(self, u: Float[Array, "*t width"]) -> tuple[Array, Array]:
        """See `Recurrence`; complex."""
        rate = jax.lax.complex(-jnp.exp(self.log_decay[...]), self.frequency[...])
        decay = jnp.exp(rate * jnp.exp(self.log_step[...]).astype(rate.dtype))
        gain = (decay - 1) / rate
        shape = (*u.shape, self.states)
        gain = jnp.broadcast_to(gain, shape)
        return jnp.broadcast_to(decay, shape), gain * u[..., None].astype(gain.dtype)

    def read(self, state: Array, u: Float[Array, "*t width"]) -> Float[Array, "*t width"]:
        """See `Recurrence`."""
        weights = jax.lax.complex(self.readout[0], self.readout[1])
        out = 2 * jnp.einsum("...ws,ws->...w", state, weights).real
        return out + u * jnp.broadcast_to(self.skip[...], u.shape)


class Selective(Recurrence):
    """Mamba's S6: how far to forget, what to write and what to read depend on the input."""

    def __init__(self, width: int, states: int = 8, *, rngs: nnx.Rngs):
        self.width, self.states = width, states
        rates = jnp.arange(1, states + 1, dtype=float)
        self.log_decay = nnx.Param(jnp.broadcast_to(jnp.log(rates), (width, states)))
        self.pace = linear(width, width, rngs=rngs)
        # Steps between 1e-3 and 1e-1 at the start: softplus of the bias.
        step = jnp.exp(jax.random.uniform(rngs(), (width,), float, math.log(1e-3), math.log(1e-1)))
        self.pace.bias[...] = step + jnp.log(-jnp.expm1(-step))  # pyright: ignore
        self.write = linear(width, states, use_bias=False, rngs=rngs)
        self.look = linear(width, states, use_bias=False, rngs=rngs)
        self.skip = nnx.Param(jnp.ones(width))

    def elements(self, u: Float[Array, "*t width"]) -> tuple[Array, Array]:
        """See `Recurrence`."""
        step = jax.nn.softplus(self.pace(u))[..., None]
        shape = (*u.shape, self.states)
        decay = jnp.exp(-step * jnp.broadcast_to(jnp.exp(self.log_decay[...]), shape))
        return decay, step * self.write(u)[..., None, :] * u[..., None]

    def read(self, state: Array, u: Float[Array, "*t width"]) -> Float[Array, "*t width"]:
        """See `Recurrence`."""
        out = jnp.einsum("...ws,...s->...w", state, self.look(u))
        return out + u * jnp.broadcast_to(self.skip[...], u.shape)


class StateSpaceNet(nnx.Module):
    """Gated blocks around recurrences: [..., t, inputs] to [..., t, outputs], causal.

    Args:
        inputs: numbers at each step.
        outputs: numbers that it gives at each step.
        width: of the residual stream; each block has as many channels.
        depth: blocks.
        states: a channel.
        layer: `Selective` or `Diagonal`.
        rngs: of the initial parameters.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 32,
        depth: int = 2,
        states: int = 8,
        layer: type[Recurrence] = Selective,
        *,
        rngs: nnx.Rngs,
    ):
        self.enter = linear(inputs, width, rngs=rngs)
        self.blocks = nnx.List([_Block(width, states, layer, rngs) for _ in range(depth)])
        self.norm = layer_norm(width, rngs=rngs)
        self.leave = linear(width, outputs, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(
        self, u: Float[Array, "*b t inputs"], reset: Bool[Array, "*b t"] | None = None
    ) -> Float[Array, "*b t outputs"]:
        """All outputs; output t depends on inputs up to t, back to the last reset."""
        h = self.enter(u)
        for block in self.blocks:
            h = h + block(h, reset)
        return self.leave(self.norm(h))

    def start(self, *batch: int) -> list[Array]:
        """The state before anything came: of a size that does not depend on time."""
        return [block.recurrence.start(*batch) for block in self.blocks]

    def step(self, state: list[Array], u: Float[Array, "*b inputs"]) -> tuple[list[Array], Array]:
        """The next state and output, at a cost that does not depend on time."""
        h, after = self.enter(u), []
        for block, old in zip(self.blocks, state, strict=True):
            new, out = block.step(old, h)
            h = h + out
            after.append(new)
        return after, self.leave(self.norm(h))


class _Block(nnx.Module):
    def __init__(self, width: int, states: int, layer: Any, rngs: nnx.Rngs):
        self.norm = layer_norm(width, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)
        self.gate = linear(width, width, rngs=rngs)
        self.recurrence = layer(width, states, rngs=rngs)
        self.out = linear(width, width, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, h, reset):
        n = self.norm(h)
        inner = self.recurrence(jax.nn.silu(self.value(n)), reset)
        return self.out(inner * jax.nn.silu(self.gate(n)))

    def step(self, state, h):
        n = self.norm(h)
        state, inner = self.recurrence.step(state, jax.nn.silu(self.value(n)))
        return state, self.out(inner * jax.nn.silu(self.gate(n)))


def _after(first, second):
    """Composition of h -> a h + b, the first before the second."""
    return second[0] * first[0], second[0] * first[1] + second[1]
