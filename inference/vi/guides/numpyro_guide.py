"""NumPyro's guides, automatic or written by hand, as programs with their parameters as leaves."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PRNGKeyArray, PyTree
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import Messenger

from ....ppl.code import Code
from ....ppl.distributions import third_party
from ....ppl.errors import ProgramError
from ....ppl.from_numpyro import NumPyroModel, _data, _Interpreter
from ....ppl.generative import PLAIN, GenerativeFunction, Outcome
from ....ppl.program import Program


def from_numpyro(
    guide: Callable, *args: PyTree, key: PRNGKeyArray, **kwargs: PyTree
) -> GenerativeFunction:
    """A NumPyro guide, run with the arguments of its model, as a guide for `ppl.from_numpyro`.

    Its `numpyro.param`s are the leaves, free of constraints (`biject_to` maps them in), and start
    where NumPyro starts them; `key` draws what a start draws. Sites are sites of the same name.
    Auxiliary sites (the joint latent of AutoMultivariateNormal, AutoIAFNormal, ...) are left out:
    such a guide can be drawn from, as objectives do, but has no density at other values.

    Raises:
        ProgramError: what `ppl.from_numpyro` says of models, or a guide that observes.
    """
    args, kwargs = jax.tree.map(_data, (args, kwargs))
    seeded = handlers.seed(guide, rng_seed=jax.random.key_data(key))
    trace = third_party(handlers.trace(seeded).get_trace)(*args, **kwargs)
    params: dict[str, Any] = {}
    for name, site in trace.items():
        if site["type"] == "param":
            inverse = third_party(_bijection(site).inv)
            params[name] = jax.tree.map(jnp.asarray, inverse(site["value"]))
        if site["type"] == "sample" and site["is_observed"]:
            raise ProgramError(f"the guide observes {name!r}: only the model observes")
    program = Program(Code(_guided), (params, NumPyroModel(Code(guide), args, kwargs)))
    auxiliary = tuple(
        name
        for name, site in trace.items()
        if site["type"] == "sample" and site["infer"].get("is_auxiliary")
    )
    return Drawn(program, auxiliary) if auxiliary else program


def _guided(ctx, params, model, *args):
    interpreter = _Interpreter(ctx, False)
    with interpreter, _Params(params):
        third_party(model.code.fn)(*model.args, *args, **model.keywords)
    return {}


class _Params(Messenger):
    """Answers `numpyro.param`."""

    def __init__(self, params: dict[str, Any]):
        super().__init__()
        self.params = params

    def process_message(self, msg: Any) -> None:
        """Give the parameter, in its constraint."""
        if msg["type"] != "param":
            return
        if msg["name"] not in self.params:
            raise ProgramError(
                f"the guide has the parameter {msg['name']!r} here, but had not when it was made: "
                "parameters may not depend on draws or arguments"
            )
        msg["value"] = _bijection(msg)(self.params[msg["name"]])
        msg["stop"] = True


def _bijection(msg: Any) -> Any:
    return biject_to(msg["kwargs"].get("constraint", dist.constraints.real))


class Drawn(GenerativeFunction):
    """A program without some of its sites, which have to determine the others: only for draws."""

    program: Program
    auxiliary: tuple[str, ...] = eqx.field(static=True)

    def run(self, key, given, args, request=PLAIN):
        """See `GenerativeFunction.run`; nothing can be given."""
        if given or request.complete:
            raise ProgramError(
                f"this NumPyro guide draws {list(self.auxiliary)} and computes its sites from it, "
                "so that it has no density at given values: use vi.guides.full_rank, low_rank or "
                "flow, or AutoNormal"
            )
        out = self.program.run(key, given, args, request)
        hidden = sum((out.log_probs[name] for name in self.auxiliary), jnp.zeros(()))

        def rest(tree):
            return {name: x for name, x in tree.items() if name not in self.auxiliary}

        log_probs = rest(out.log_probs)
        first = next(iter(log_probs))
        log_probs[first] = log_probs[first] + hidden.astype(log_probs[first].dtype)
        reports = None if out.reports is None else rest(out.reports)
        active = rest(out.active)
        return Outcome(rest(out.choices), log_probs, active, out.log_weight, out.retval, reports)
