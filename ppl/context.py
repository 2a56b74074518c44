"""The context a program speaks to while it is run."""

import difflib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from . import distributions
from .errors import EstimatedDensity, ProgramError, site_name
from .estimated import EstimatedDistribution
from .generative import GenerativeFunction, Outcome, Request
from .keys import plain_key
from .partial import Given, Partial, as_value, where_leading
from .tracing import trace_state


class Context:
    """Handed to a program as its first argument; the program says through it what is random.

    Site names are unique within a program. A context lives only while its program runs.
    """

    def __init__(self, key: PRNGKeyArray | None, given: Given, request: Request):
        self._key, self._given, self._request = key, given, request
        self._choices: dict[str, Any] = {}
        self._log_probs: dict[str, Any] = {}
        self._active: dict[str, Any] = {}
        self._reports: dict[str, Any] = {}
        self._names: list[str] = []
        self._ended = False
        self._log_weight = jnp.zeros(())
        self._entered = trace_state()

    def sample(self, name: str, distribution: dist.Distribution | EstimatedDistribution) -> PyTree:
        """Draw the value of site `name`, or take it from the constraints."""
        self._enter(name)
        given = as_value(self._given[name]) if name in self._given else None
        self._check_given(name, given)
        key, probe, path = self._key_for(name), self._request.probe, (*self._request.where, name)
        if isinstance(distribution, EstimatedDistribution):
            if probe is not None:
                probe.estimated(path, distribution)
            key = None if key is None else plain_key(key)
            value, log_prob = self._estimated(name, key, distribution, given)
        elif isinstance(distribution, dist.Distribution):
            value, log_prob = self._exact(name, key, distribution, given)
            if probe is not None:
                self._reports[name] = probe.report(path, key, distribution, value, log_prob)
        else:
            raise ProgramError(
                f"site {self._at(name)} got a {type(distribution).__name__}, not a distribution. "
                "Instead of this, "
                "give a NumPyro distribution, ppl.Token, ppl.marginal(...) or ppl.normalize(...); "
                "a program is called with ctx.call(name, program, *args)."
            )
        self._choices[name] = value
        self._log_probs[name] = log_prob.astype(self._log_weight.dtype)
        return value

    def observe(self, name: str, distribution: dist.Distribution, value: ArrayLike) -> None:
        """Condition on `value` having been drawn: adds its log density, nats."""
        self._enter(name)
        if not isinstance(distribution, dist.Distribution):
            raise ProgramError(
                f"observe {self._at(name)} needs a NumPyro distribution, got "
                f"{type(distribution).__name__}"
            )
        self._check_weighs(name)
        value = self._shaped(name, distribution, jnp.asarray(value))
        self._weigh(distributions.log_density(distribution, value, check=True))

    def factor(self, name: str, log_weight: ArrayLike) -> None:
        """Multiply the density by exp(log_weight); a scalar in nats, -inf to forbid."""
        self._enter(name)
        self._check_weighs(name)
        log_weight = jnp.asarray(log_weight, dtype=self._log_weight.dtype)
        if log_weight.shape:
            raise ProgramError(
                f"factor {self._at(name)} has shape {log_weight.shape}: give one number, for "
                "example its sum"
            )
        self._weigh(log_weight)

    def call(self, name: str, program: GenerativeFunction, *args: PyTree) -> PyTree:
        """Run another generative function; its sites are found under `name`."""
        self._enter(name)
        if not isinstance(program, GenerativeFunction):
            raise ProgramError(
                f"call {self._at(name)} needs a program, got {type(program).__name__}. Decorate "
                "the function with "
                "@ppl.program; a distribution is drawn with ctx.sample(name, distribution)."
            )
        given = self._given.get(name, {})
        if isinstance(given, Partial):
            raise ProgramError(
                f"{self._at(name)} is a call: constrain its sites in a dict "
                f"{{{name!r}: {{site: value}}}}, not with one value"
            )
        out = program.run(self._key_for(name), given, args, self._request.inside(name))
        self._choices[name], self._log_probs[name] = out.choices, out.log_probs
        self._active[name], self._reports[name] = out.active, out.reports
        self._weigh(out.log_weight)
        return out.retval

    def finish(self, retval: PyTree) -> Outcome:
        """The outcome of the run; an error if a constraint names no site."""
        for name in self._given:
            if name not in self._choices:
                near = difflib.get_close_matches(name, self._choices, n=1)
                hint = (
                    f" Did you mean {near[0]!r}?" if near else f" It has {sorted(self._choices)}."
                )
                what = (
                    " (it is observed or a factor: change the args instead)"
                    if name in self._names
                    else ""
                )
                raise ProgramError(
                    f"a value was given for {self._at(name)}, which the program does not "
                    f"sample{what}.{hint}"
                )
        self._ended = True
        reports = None if self._request.probe is None else self._reports
        return Outcome(
            self._choices, self._log_probs, self._active, self._log_weight, retval, reports
        )

    def _at(self, name: str) -> str:
        return site_name(self._request.where, name)

    def _enter(self, name: str) -> None:
        if not isinstance(name, str) or not name:
            raise ProgramError(f"a site name is a non-empty string, got {name!r}")
        if self._ended:
            raise ProgramError(
                f"site {self._at(name)} was reached when its program has ended: use the context "
                "only inside the program that it was handed to"
            )
        if name in self._names:
            raise ProgramError(
                f"site {self._at(name)} appears twice. Give each site its own name; for a loop use "
                "ppl.scan or ppl.vmap, which number the instances."
            )
        if trace_state() != self._entered:
            raise ProgramError(
                f"site {self._at(name)} is inside a raw JAX transformation (jit, scan, vmap, "
                "cond, grad, ...), "
                "where it would be traced once and its choices lost. Instead of jax.lax.scan do "
                "ctx.call(name, ppl.scan(program), carry, xs); likewise ppl.vmap and ppl.cond; "
                "put jit around the whole inference."
            )
        self._names.append(name)

    def _key_for(self, name: str) -> PRNGKeyArray | None:
        return (
            None if self._key is None else jax.random.fold_in(self._key, zlib.crc32(name.encode()))
        )

    def _weigh(self, log_weight: Float[Array, ""]) -> None:
        self._log_weight = self._log_weight + log_weight.astype(self._log_weight.dtype)

    def _check_weighs(self, name: str) -> None:
        if self._request.weightless:
            raise ProgramError(
                f"{self._at(name)} is an observe or a factor, but a marginal is of a normalized "
                "law: leave it out, or use ppl.normalize, which takes any target"
            )

    def _check_given(self, name: str, given: Partial | None) -> None:
        if given is None or given.mask is not None:
            if self._request.complete:
                raise ProgramError(
                    f"no value for site {self._at(name)}: assess needs every choice. Give it, or "
                    "use "
                    "generate, which draws what is missing."
                )
        if given is not None and given.mask is not None and jnp.shape(given.mask):
            raise ProgramError(
                f"the mask of the value given for {self._at(name)} has {jnp.ndim(given.mask)} "
                "axes too many: masks range over "
                "the instances made by vmap, scan and time, not over a distribution's own shape"
            )

    def _exact(self, name, key, distribution, given):
        if given is None:
            value = distributions.draw(distribution, key)
        else:
            value = self._shaped(name, distribution, given.value)
            if given.mask is not None:
                value = where_leading(given.mask, value, distributions.draw(distribution, key))
        if self._request.probe is not None:
            path = (*self._request.where, name)
            value = self._request.probe.value(path, key, distribution, value)
        check = given is not None
        return value, distributions.log_density(distribution, value, check=check)

    def _estimated(self, name, key, distribution, given):
        if given is None:
            return distribution.random_weighted(key)
        if key is None:
            raise EstimatedDensity(
                f"the density at {self._at(name)} is estimated, not computed: call "
                "assess(choices, *args, key=key)"
            )
        log_prob = distribution.estimate_logpdf(key, given.value)
        if given.mask is None:
            return given.value, log_prob
        value, log_w = distribution.random_weighted(key)
        return where_leading(given.mask, (given.value, log_prob), (value, log_w))

    def _shaped(self, name: str, distribution: dist.Distribution, value: Any) -> Array:
        like = distributions.drawn_like(distribution)
        if isinstance(value, dict) or jnp.shape(value) != like.shape:
            got = "a dict" if isinstance(value, dict) else f"shape {jnp.shape(value)}"
            raise ProgramError(
                f"the value for {self._at(name)} has {got}, but {type(distribution).__name__} has "
                f"shape {like.shape}"
            )
        kinds = (jnp.inexact, jnp.integer, jnp.bool_)
        order = [
            next(i for i, k in enumerate(kinds) if jnp.issubdtype(x.dtype, k))
            for x in (like, value)
        ]
        if order[0] > order[1]:
            if self._request.relaxed:
                return value
            raise ProgramError(
                f"the value for {self._at(name)} is {value.dtype}, but "
                f"{type(distribution).__name__} draws {like.dtype}: "
                "convert it first, so that nothing is rounded silently"
            )
        return value.astype(like.dtype)
