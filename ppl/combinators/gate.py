"""Stopping gradients by a traced flag, without copying what is shared.

A JAX primitive, because a function with a custom derivative has to give its tangent the batch axes
of its value: gating a shared parameter by the flag of each particle would copy it to each.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, PyTree

from ..partial import where_leading

_gate = Primitive("gate")
_gate.def_impl(lambda flag, x: x)
_gate.def_abstract_eval(lambda flag, x: x)
mlir.register_lowering(_gate, lambda ctx, flag, x: [x])


def _jvp(primals, tangents):
    (flag, x), tangent = primals, tangents[1]
    if not isinstance(tangent, ad.Zero):
        tangent = where_leading(flag, tangent, jnp.zeros_like(tangent))
    return _gate.bind(flag, x), tangent


def _batch(args, axes):
    (flag, x), (flag_axis, x_axis) = args, axes
    if x_axis is None:
        return _gate.bind(jnp.any(flag, axis=flag_axis), x), x_axis
    x = jnp.moveaxis(x, x_axis, 0)
    if flag_axis is None:
        flag = jnp.broadcast_to(flag, (x.shape[0], *flag.shape))
    else:
        flag = jnp.moveaxis(flag, flag_axis, 0)
    return _gate.bind(flag, x), 0


ad.primitive_jvps[_gate] = _jvp
batching.primitive_batchers[_gate] = _batch


def gate(flag: Bool[Array, ""], tree: PyTree) -> PyTree:
    """The tree unchanged; where `flag` is false no gradient, not even NaN, passes back through it.

    Differentiated under a `vmap` over the flag, what is not batched has one gate, which is shut if
    no member's flag is true.
    """
    return jax.tree.map(lambda x: _gate.bind(flag, x) if eqx.is_inexact_array(x) else x, tree)
