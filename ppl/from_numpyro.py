"""NumPyro models as generative functions.

A NumPyro model is a Python function that speaks to a stack of handlers; here one handler, the
outermost, passes what it says on to the context of a program. Phan, Pradhan and Jankowiak (2019),
"Composable effects for flexible and accelerated probabilistic programming in NumPyro".
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from .code import Code
from .context import Context
from .distributions import log_density, third_party
from .errors import ProgramError
from .generative import PLAIN, GenerativeFunction
from .partial import Choices
from .program import Program


class NumPyroModel(eqx.Module):
    """A NumPyro function with its arguments: the first bound argument of its program."""

    code: Code
    args: tuple
    keywords: dict[str, Any]
    replicating: bool = eqx.field(static=True, default=False)

    def interpret(self, ctx: Context, *args: PyTree) -> "_Interpreter":
        """Run the function, its statements told to a context."""
        interpreter = _Interpreter(ctx, self.replicating)
        with interpreter:
            third_party(self.code.fn)(*self.args, *args, **self.keywords)
        return interpreter


def from_numpyro(model: Callable, *args: PyTree, **kwargs: PyTree) -> Program:
    """A NumPyro model as a program, with the arguments that it is called with.

    Latent sites are sites of the same name. Observed sites and `numpyro.factor` are observes: they
    are in the likelihood, so that tempering tempers them. A plate's sites are one site of the
    plate's shape. Handlers around the model (`condition`, `reparam`, `mask`, `scale`, ...) keep
    their meaning; a latent site under a mask keeps its prior (its masked part is drawn and counts
    nowhere). The return value is a dict of the deterministic sites. The program needs no more
    arguments, so it stands for its own target:
    `inference.SMC(1000).run(key, ppl.from_numpyro(model, x, y=y))`. Arrays and floats among the
    arguments are data: new ones compile nothing.

    Law: the density of the choices times exp(log_weight) is NumPyro's joint density.

    Errors: minibatches (`subsample_size`), `numpyro.param`, improper priors, NumPyro's `scan` and
    `cond`.
    """
    args, kwargs = jax.tree.map(_data, (args, kwargs))
    return Program(Code(_interpreted), (NumPyroModel(Code(model), args, kwargs),))


def _interpreted(ctx: Context, model: NumPyroModel, *args: PyTree) -> PyTree:
    return model.interpret(ctx, *args).deterministic


def replicated(program: GenerativeFunction) -> GenerativeFunction:
    """A NumPyro model with its observed sites drawn instead; any other model as it is."""
    if not is_numpyro(program):
        return program
    first, *rest = program.bound
    return Program(program.code, (dataclasses.replace(first, replicating=True), *rest))


def observed(program: GenerativeFunction, *args: PyTree) -> Choices:
    """The values of a NumPyro model's observed sites, by name; nothing of any other model."""
    if not is_numpyro(program):
        return {}
    model, *rest = program.bound
    return model.interpret(Context(jax.random.key(0), {}, PLAIN), *rest, *args).observed


def is_numpyro(program: Any) -> TypeGuard[Program]:
    """Was this made by `from_numpyro`?"""
    if not isinstance(program, Program) or not program.bound:
        return False
    return isinstance(program.bound[0], NumPyroModel)


class _Interpreter(Messenger):
    """Tells a context what a NumPyro model says."""

    def __init__(self, ctx: Context, replicating: bool):
        super().__init__()
        self.ctx, self.replicating = ctx, replicating
        self.deterministic: dict[str, Any] = {}
        self.observed: dict[str, Any] = {}

    def process_message(self, msg: Any) -> None:
        """Answer one statement of the model; handlers inside have had their say."""
        kind, name = msg["type"], msg.get("name")
        if kind == "sample":
            self._sample(name, msg)
        elif kind == "deterministic":
            self.deterministic[name] = msg["value"]
        elif kind == "prng_key":
            raise ProgramError(
                "numpyro.prng_key draws what is no site of the model: draw it with numpyro.sample"
            )
        elif kind == "plate":
            size, part = msg["args"]
            if part is not None and part != size:
                raise ProgramError(
                    f"plate {name!r} takes a minibatch of {part} of {size}: a random part of the "
                    "data makes the likelihood an estimate of something else. Instead of "
                    "subsample_size give the model all data, or inference.DataAnnealing parts of it"
                )
        elif kind == "param":
            raise ProgramError(
                f"{name!r} is a numpyro.param, which is no random variable: fix it first, with "
                f"numpyro.handlers.substitute(model, data={{{name!r}: value}}), or give it a prior"
            )
        elif kind in ("control_flow", "mutable"):
            raise ProgramError(
                f"a NumPyro model with {kind} (scan, cond, mutable) is not taken apart: write it "
                "as a program with ppl.scan, ppl.cond or ppl.StateSpace"
            )

    def _sample(self, name: str, msg: Any) -> None:
        fn, scale, value = msg["fn"], msg["scale"], msg["value"]
        shape = msg["kwargs"].get("sample_shape", ())
        if shape:
            fn = third_party(fn.expand)(shape + fn.batch_shape)
        if value is None:
            fn = _unmasked(fn)
            self._check_proper(name, fn)
            msg["value"] = self.ctx.sample(name, fn)
            if scale is not None:
                extra = log_density(fn, msg["value"], check=True)
                self.ctx.factor(f"{name} (scale)", (scale - 1) * extra)
            return
        value = jnp.asarray(value)
        factor = isinstance(_unmasked(fn), dist.Unit)
        if not factor:
            self.observed[name] = value
        if self.replicating and not factor:
            batch = value.shape[: value.ndim - len(fn.event_shape)]
            whole = jnp.broadcast_shapes(batch, fn.batch_shape)
            msg["value"] = self.ctx.sample(name, third_party(_unmasked(fn).expand)(whole))
            return
        if factor:
            log_weight = jnp.sum(third_party(fn.log_prob)(value))
        else:
            log_weight = log_density(fn, value, check=True)
        self.ctx.factor(name, log_weight if scale is None else scale * log_weight)

    def _check_proper(self, name: str, fn: dist.Distribution) -> None:
        base: Any = fn
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if isinstance(base, (dist.ImproperUniform, dist.Unit)):
            raise ProgramError(
                f"site {name!r} has an improper prior, from which nothing can be drawn and under "
                "which there is no evidence: give it a wide proper one"
            )


def _unmasked(fn: Any) -> Any:
    """The distribution without masks around it."""
    if isinstance(fn, dist.MaskedDistribution):
        return _unmasked(fn.base_dist)
    if isinstance(fn, dist.ExpandedDistribution):
        inner = _unmasked(fn.base_dist)
        return fn if inner is fn.base_dist else third_party(inner.expand)(fn.batch_shape)
    return fn


def _data(x: Any) -> Any:
    if isinstance(x, float):
        return jnp.asarray(x, dtype=float)
    return jnp.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x
