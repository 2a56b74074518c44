"""NumPyro models as generative functions.

A NumPyro model is a Python function that speaks to a stack of handlers; here one handler, the
outermost, passes what it says on to the context of a program. Phan, Pradhan and Jankowiak (2019),
"Composable effects for flexible and accelerated probabilistic programming in NumPyro".
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, PyTree
from numpyro.primitives import Messenger

from .code import Code
from .context import Context
from .distributions import log_density, third_party
from .errors import ProgramError
from .generative import PLAIN, GenerativeFunction
from .partial import Choices


class NumPyroModel(GenerativeFunction):
    """A NumPyro model with its arguments; made by `ppl.from_numpyro`.

    Law: the density of the choices (the latent sites) times exp(log_weight) is NumPyro's joint
    density. The return value is a dict of the deterministic sites.
    """

    code: Code
    bound: tuple
    keywords: dict[str, Any]
    replicating: bool = eqx.field(static=True, default=False)

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`; args come after those bound."""
        ctx = Context(key, given, request)
        interpreter = self._interpret(ctx, key, args)
        values = jax.tree.map(jnp.asarray, interpreter.deterministic)
        return ctx.finish(values)

    def bind(self, *args: PyTree) -> "NumPyroModel":
        """The model with more leading args fixed; see `ppl.bind`."""
        return dataclasses.replace(self, bound=self.bound + args)

    def replicated(self) -> "NumPyroModel":
        """The model with its observed sites drawn instead: for predictive draws."""
        return dataclasses.replace(self, replicating=True)

    def data(self, *args: PyTree) -> Choices:
        """The values of the observed sites, by name (those made of args and data alone)."""
        key = jax.random.key(0)
        return self._interpret(Context(key, {}, PLAIN), key, args).observed

    def _interpret(self, ctx, key, args) -> "_Interpreter":
        interpreter = _Interpreter(ctx, key, self.replicating)
        with interpreter:
            third_party(self.code.fn)(*self.bound, *args, **self.keywords)
        return interpreter


def from_numpyro(model: Callable, *args: PyTree, **kwargs: PyTree) -> NumPyroModel:
    """A NumPyro model as a generative function, with the arguments that it is called with.

    Latent sites are sites of the same name. Observed sites and `numpyro.factor` are observes: they
    are in the likelihood, so that tempering tempers them. A plate's sites are one site of the
    plate's shape. Handlers around the model (`condition`, `reparam`, `mask`, `scale`, ...) keep
    their meaning; a latent site under a mask keeps its prior (its masked part is drawn and counts
    nowhere). The result needs no more arguments, so it stands for its own target:
    `inference.SMC(1000).run(key, ppl.from_numpyro(model, x, y=y))`. Arrays and floats among the
    arguments are data: new ones compile nothing.

    Errors: minibatches (`subsample_size`), `numpyro.param`, improper priors, NumPyro's `scan` and
    `cond`.
    """
    bound, keywords = jax.tree.map(_data, (args, kwargs))
    return NumPyroModel(Code(model), bound, keywords)


class _Interpreter(Messenger):
    """Tells a context what a NumPyro model says."""

    def __init__(self, ctx: Context, key: Array | None, replicating: bool):
        super().__init__()
        self.ctx, self.key, self.replicating = ctx, key, replicating
        self.deterministic: dict[str, Any] = {}
        self.observed: dict[str, Any] = {}
        self.keys = 0

    def process_message(self, msg: Any) -> None:
        """Answer one statement of the model; handlers inside have had their say."""
        kind, name = msg["type"], msg.get("name")
        if kind == "sample":
            self._sample(name, msg)
        elif kind == "deterministic":
            self.deterministic[name] = msg["value"]
        elif kind == "prng_key" and self.key is not None:
            self.keys += 1
            msg["value"] = jax.random.fold_in(self.key, self.keys)
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
        base = fn
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
    return jnp.asarray(x) if isinstance(x, (float, np.ndarray, np.generic)) else x
