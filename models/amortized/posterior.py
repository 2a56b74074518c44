"""A trained network as a posterior: for data, a guide, a proposal, draws and densities."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...inference.vi.fit import FitStatus
from ...inference.vi.guides.layout import Layout
from ...inference.vi.guides.whole import Whole
from ...ppl.compiled import compiled
from ...ppl.partial import Choices
from ...ppl.proposal import Proposal
from .density import Density
from .encoders import Encoder, Features
from .inputs import Inputs, Known, Values


class Conditional(Whole):
    """The network's law for one data set, as a guide: a generative function with the latent sites.

    `ppl.Proposal(init=guide)` proposes from it, objectives of `vi` train it (its arrays, the
    context among them, are leaves), `simulate` and `assess` draw and weigh. `inside`: is the data
    set within the range of the simulations?
    """

    head: Density
    context: Float[Array, "*members c"]
    loc: Float[Array, " d"]
    scale: Float[Array, " d"]
    inside: Bool[Array, ""]
    layout: Layout = eqx.field(static=True)

    def draw(self, key):
        """See `Whole`."""
        z = self.head.sample(key, self.context)
        return self.loc + self.scale * z, self._log_prob(z)

    def log_prob(self, z):
        """See `Whole`."""
        return self._log_prob((z - self.loc) / self.scale)

    def _log_prob(self, z):
        return self.head.log_prob(z, self.context) - jnp.sum(jnp.log(self.scale))


class NeuralPosterior(eqx.Module):
    """q(latents | data) for every data set of a program, from `npe`; its draws are independent.

    Draws are in the support of each site. Every method that takes `data` takes the observed
    choices, or a target's constraints; with `masked=True` in training any of them may be left out,
    or be known at some instances, `ppl.Partial(values, mask)`.

    - `layout`: the latent sites and their coordinates. `inputs`: the observed ones.
    - `log_score`: mean log density of the truth in simulations not trained on (NaN: none were kept
      apart), nats, with respect to the coordinates.
    - `status`: how training ended.
    """

    encoder: Encoder
    head: Density
    inputs: Inputs
    loc: Float[Array, " d"]
    scale: Float[Array, " d"]
    log_score: Float[Array, ""]
    status: FitStatus
    layout: Layout = eqx.field(static=True)
    members: int = eqx.field(static=True)

    def at(self, data: Choices) -> Conditional:
        """The law for one data set.

        Raises:
            ProgramError: an observed site is missing, unknown, misshapen or not finite.
        """
        context, inside = _read(self.encoder, self.members, self.inputs, *self.inputs.read(data))
        return Conditional(
            head=self.head,
            context=context,
            loc=self.loc,
            scale=self.scale,
            inside=inside,
            layout=self.layout,
        )

    def sample(self, key: PRNGKeyArray, data: Choices, n: int) -> Choices:
        """N independent draws of the latent choices [n, ...] for one data set."""
        return _drawn(key, self.at(data), n)

    def log_prob(self, data: Choices, choices: Choices) -> Float[Array, " n"]:
        """Log densities of latent choices [n, ...] for one data set, nats."""
        return _scored(self.at(data), choices)

    def proposal(self, data: Choices) -> Proposal:
        """For `Importance`, `MultipleImportance`, `Tempered`: the model draws any other sites."""
        return Proposal(init=self.at(data))

    def inside(self, data: Choices) -> Bool[Array, ""]:
        """Is every known number within the range of the simulations?"""
        return self.inputs.inside(*self.inputs.read(data))

    @property
    def validity(self) -> dict[str, tuple[float, float]]:
        """The range of the simulations, by observed site."""
        ranges = zip(self.inputs.sites, self.inputs.low, self.inputs.high, strict=True)
        return {site.name: (float(low.min()), float(high.max())) for site, low, high in ranges}

    def __repr__(self) -> str:
        latent = ["/".join(site.path) for site in self.layout.sites]
        observed = [site.name for site in self.inputs.sites]
        part = "any part of " if self.inputs.masked else ""
        return (
            f"NeuralPosterior({latent} given {part}{observed}, log_score={self.log_score}, "
            f"status={self.status!r})"
        )


def encoded(encoder: Encoder, members: int, features: Features) -> Float[Array, "*members c"]:
    """The context of every member of an ensemble, or of the one network."""
    if members == 1:
        return encoder(features)
    return eqx.filter_vmap(lambda one: one(features))(encoder)


def log_scores(
    net: tuple[Encoder, Density],
    members: int,
    inputs: Inputs,
    z: Float[Array, "n d"],
    values: Values,
    known: Known,
) -> Float[Array, "n members"]:
    """Each member's log density of standardized coordinates given data, for n pairs."""

    def one(z, values, known):
        features = inputs.features(values, known)
        if members == 1:
            encoder, head = net
            return head.log_prob(z, encoder(features))[None]
        return eqx.filter_vmap(lambda m: m[1].members.log_prob(z, m[0](features)))(net)

    return jax.vmap(one)(z, values, known)


@compiled
def _read(encoder: Encoder, members: int, inputs: Inputs, values: Values, known: Known) -> Any:
    context = encoded(encoder, members, inputs.features(values, known))
    return context, inputs.inside(values, known)


@compiled
def _drawn(key: PRNGKeyArray, law: Conditional, n: int) -> Any:
    return jax.vmap(lambda k: law.run(k, {}, ()).choices)(jax.random.split(key, n))


@compiled
def _scored(law: Conditional, choices: Choices) -> Any:
    return jax.vmap(lambda x: law.assess(x)[0])(choices)
