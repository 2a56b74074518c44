"""Prior and posterior predictive draws, and checks of a model against its data.

Gelman, Meng and Stern (1996), "Posterior predictive assessment of model fitness via realized
discrepancies".
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ...ppl.code import Code
from ...ppl.compiled import compiled
from ...ppl.errors import ProgramError
from ...ppl.from_numpyro import observed, replicated
from ...ppl.partial import Choices, Given, Partial, as_given, as_value, prune
from ...ppl.target import Target, as_target
from ..particles import Particles


class Predictive(eqx.Module):
    """Draws [n, ...] of a model: all its choices, data included, and its return values.

    `given` are the draws of the free choices that they were made from; empty for the prior.
    """

    choices: Choices
    retval: PyTree
    given: Choices


def predictive(
    key: PRNGKeyArray, draws: Particles | Choices | None, target: Any, n: int | None = None
) -> Predictive:
    """New data from a model: what is constrained or observed is drawn instead.

    `draws` is None (from the prior, n draws), a population (n of its particles by weight, as many
    as it has by default; it stands for any consistent posterior), or a dict of draws with a leading
    axis (used one by one). Data are the sites that the target constrains and, of a NumPyro model,
    those that it observes. A program's own `observe` draws nothing: make such data a sampled site
    and constrain it.
    """
    if draws is None:
        if n is None:
            raise ValueError(
                "draws of the prior need their number: predictive(key, None, target, n)"
            )
        return _predict(key, None, as_target(target), n)
    if isinstance(draws, Particles):
        key, key_pick = jax.random.split(key)
        size = draws.log_weights.shape[-1] if n is None else n
        index = jax.random.categorical(key_pick, draws.log_weights, shape=(size,))
        draws = jax.tree.map(lambda x: x[index], draws.choices)
    return _predict(key, draws, as_target(target), jax.tree.leaves(draws)[0].shape[0])


class Check(eqx.Module):
    """A statistic of the data and of replicated data, for the same draws [n, ...].

    `p_value` is the share of draws whose replicated statistic is larger, ties counted half: near 0
    or 1 the model does not make data like these.
    """

    observed: Float[Array, "n ..."]
    replicated: Float[Array, "n ..."]
    p_value: Float[Array, "..."]


def predictive_check(
    key: PRNGKeyArray,
    draws: Particles | Choices,
    target: Any,
    statistic: Callable[[Choices], Array],
    n: int | None = None,
) -> Check:
    """A posterior predictive check with `statistic(choices) -> array`.

    It sees all choices, data included: the data's own for `observed`, new ones for `replicated`.
    Of a program the draws hold the constrained data themselves (as particles do).
    """
    target = as_target(target)
    new = predictive(key, draws, target, n)
    return _check(Code(statistic), new, target)


@compiled
def _predict(key: PRNGKeyArray, draws: Choices | None, target: Target, n: int) -> Predictive:
    model, fixed = replicated(target.model), as_given(target.constraints)

    def one(i, choices):
        given = {} if choices is None else prune(_free(as_given(choices), fixed))
        out = model.run(jax.random.fold_in(key, i), given, target.args)
        return out.choices, out.retval

    choices, retval = jax.vmap(one, in_axes=(0, None if draws is None else 0))(
        jnp.arange(n, dtype=jnp.int32), draws
    )
    return Predictive(choices, retval, draws or {})


@compiled
def _check(statistic: Code, new: Predictive, target: Target) -> Check:
    data = observed(target.model, *target.args)

    def number(x):
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)

    def old(given):
        missing = set(new.choices) - set(given) - set(data)
        if missing:
            raise ProgramError(
                f"the draws say nothing of {sorted(missing)}, so that there is no statistic of the "
                "data: give draws that hold the data too, as particles do"
            )
        return number(statistic({**given, **data}))

    seen = jax.vmap(old)(new.given)
    drawn = jax.vmap(lambda c: number(statistic(c)))(new.choices)
    higher = jnp.where(drawn > seen, 1.0, jnp.where(drawn == seen, 0.5, 0.0))
    return Check(seen, drawn, jnp.mean(higher, axis=0))


def _free(choices: Given, fixed: Given) -> Any:
    """The choices that are not fixed, as given values."""

    def leaf(node, over):
        if isinstance(node, dict) and not isinstance(over, Partial):
            return {name: leaf(child, (over or {}).get(name)) for name, child in node.items()}
        if over is None:
            return node
        if not isinstance(over, Partial) or over.mask is None:
            return None
        return Partial(as_value(node).value, ~over.mask)

    return leaf(choices, fixed)
