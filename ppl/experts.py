"""Powers and products of whole models, normalised over whole sequences.

The density of x is prod_i p_i(x)^lambda_i, up to one constant for all x. Normalising each step
instead is another law: it leaves out Z_t(x_{<t}) = sum_{x_t} prod_i p_i(x_t | x_{<t})^lambda_i.
With the step-wise product as proposal, that Z_t is the increment of the weight: a Feynman-Kac
corrector (Skreta et al. 2025, arXiv 2503.02819, for diffusions; here for sequences).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .code import Code
from .errors import EstimatedDensity, ProgramError
from .generative import PLAIN, GenerativeFunction, Outcome, Request
from .partial import as_given, total
from .program import as_program
from .state_space import StateSpace


class _Expert(GenerativeFunction):
    """Functions that take the same choices, of each its own args; drawn from the first."""

    functions: tuple[GenerativeFunction, ...]
    exponents: Float[Array, "experts"]

    def run(self, key, given, args, request=PLAIN) -> Outcome:
        """See `GenerativeFunction.run`; args are one tuple a function."""
        if request.weightless:
            raise ProgramError(
                "a power or product of models is not normalised, so that it has no marginal: use "
                "ppl.normalize, which takes any target"
            )
        if len(args) != len(self.functions):
            raise ProgramError(
                f"a product of {len(self.functions)} programs takes one tuple of args for each, "
                f"got {len(args)}"
            )
        first, *others = zip(self.functions, args, strict=True)
        out = first[0].run(key, given, first[1], request)
        drawn, complete = as_given(out.choices), Request(complete=True, where=request.where)
        try:
            # Without a key a density that is only estimated is an error, of the first one as well.
            rest = [fn.run(None, drawn, its_args, complete) for fn, its_args in others]
            jax.eval_shape(lambda: first[0].run(None, drawn, first[1], complete).log_weight)
        except EstimatedDensity as error:
            raise EstimatedDensity(
                f"a power or product of models needs exact densities, a power of an estimate is "
                f"biased: sum the latent sites out exactly (inference.exact), or keep them as "
                f"sites instead of ppl.marginal. {error}"
            ) from error
        except ProgramError as error:
            raise ProgramError(f"the models of a product need the same sites: {error}") from error
        log_weight = -total(out.log_probs)
        for exponent, each in zip(self.exponents, (out, *rest), strict=True):
            log_density = total(each.log_probs) + each.log_weight
            term = exponent.astype(log_density.dtype) * log_density
            log_weight += jnp.where(jnp.isneginf(log_density), -jnp.inf, term)
        # The first one's own density may be zero where a site is given.
        log_weight = jnp.where(jnp.isneginf(total(out.log_probs)), -jnp.inf, log_weight)
        return replace(
            out, log_weight=log_weight, retval=tuple(each.retval for each in (out, *rest))
        )


class _Init(GenerativeFunction):
    models: tuple[StateSpace, ...]
    exponents: Float[Array, "experts"]

    def run(self, key, given, args, request=PLAIN) -> Outcome:
        expert = _Expert(tuple(m.init for m in self.models), self.exponents)
        return expert.run(key, given, tuple((*m.bound, *args) for m in self.models), request)


class _Step(GenerativeFunction):
    models: tuple[StateSpace, ...]
    exponents: Float[Array, "experts"]

    def run(self, key, given, args, request=PLAIN) -> Outcome:
        states, t, *rest = args
        expert = _Expert(tuple(m.step for m in self.models), self.exponents)
        each = tuple((s, t, *m.bound, *rest) for m, s in zip(self.models, states, strict=True))
        return expert.run(key, given, each, request)


def product(models: Any, exponents: ArrayLike | Sequence[float]) -> GenerativeFunction:
    """The model whose density is prod_i p_i(x)^exponents[i] over whole choices x.

    `models` are StateSpaces of one length, or programs, with the same sites and (after what is
    bound) the same args. Choices are drawn from the first, unless a proposal does it; the others,
    and the powers, are weights (nats), as are their factors and observations to their powers. The
    state (return value) is a tuple, one for each, so that a proposal sees every model's. Where any
    model says impossible the product is, for negative exponents too. Exponents are arrays: new
    ones compile nothing.
    """
    models = tuple(as_program(m) for m in models)
    exponents = jnp.asarray(exponents, dtype=float)
    if not models or exponents.shape != (len(models),):
        raise ProgramError(
            f"a product needs one exponent for each model, got {len(models)} models and exponents "
            f"of shape {exponents.shape}"
        )
    if not any(isinstance(m, StateSpace) for m in models):
        return _Shared(_Expert(models, exponents))
    if not all(isinstance(m, StateSpace) for m in models):
        raise ProgramError("a product is of StateSpaces or of programs, not of both")
    if len({m.length for m in models}) != 1:
        raise ProgramError(f"the models have lengths {[m.length for m in models]}: make them one")
    first = models[0]
    done = first.done
    over = None if done is None else Code(lambda states: done(states[0]))
    step = _Step(models, exponents)
    return StateSpace(_Init(models, exponents), step, first.length, over, first.at_length)


class _Shared(GenerativeFunction):
    """Experts of one tuple of args."""

    expert: _Expert

    def run(self, key, given, args, request=PLAIN) -> Outcome:
        return self.expert.run(key, given, (args,) * len(self.expert.functions), request)


def power(model: Any, exponent: ArrayLike) -> GenerativeFunction:
    """The model whose density is p(x)^exponent over whole choices x: a product of one.

    Not the same as sampling each token at temperature 1/exponent, which looks one step ahead.
    """
    return product((model,), jnp.asarray(exponent, dtype=float).reshape(1))
