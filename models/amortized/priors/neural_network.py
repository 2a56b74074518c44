"""Regression by a Bayesian neural network: a prior over data sets whose predictive is intractable.

Neal (1996), "Bayesian learning for neural networks", chapter 2; one of the priors of Mueller et
al. (2022), section 5.2.
"""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ....ppl.context import Context
from ....ppl.program import Program, bind, program
from .number import number


class NeuralNetwork(eqx.Module):
    """y = f(x) + noise, f a perceptron with tanh units and normal weights; x standard normal.

    - `dim`: features; `hidden`: units of each hidden layer; `weight`: standard deviation of a
      layer's weights times the root of its number of inputs; `bias`, `noise`: standard deviations.
    """

    dim: int = eqx.field(static=True)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(16,))
    weight: Float[Array, ""] = number(2.0)
    bias: Float[Array, ""] = number(1.0)
    noise: Float[Array, ""] = number(0.1)

    def program(self, points: int) -> Program:
        """Sites `w0`, `b0`, `w1`, ..., `x` [points, dim] and `y` [points]."""
        return bind(program(_sample(points)), self)


def _sample(points: int) -> Callable:
    def neural_network(ctx: Context, family: NeuralNetwork):
        x = ctx.sample("x", dist.Normal(jnp.zeros((points, family.dim)), 1.0))
        sizes = (family.dim, *family.hidden, 1)
        h = x
        for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            spread = family.weight / inputs**0.5
            w = ctx.sample(f"w{i}", dist.Normal(jnp.zeros((inputs, outputs)), spread))
            b = ctx.sample(f"b{i}", dist.Normal(jnp.zeros(outputs), family.bias))
            h = h @ w + b[None]
            h = h if i + 2 == len(sizes) else jnp.tanh(h)
        return ctx.sample("y", dist.Normal(h[:, 0], family.noise))

    return neural_network
