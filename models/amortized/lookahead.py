"""A posterior network as a twist: what data that are to come say of a state.

By Bayes' rule p(data to come | x) = p(x | data to come) / p(x) times a constant, both densities of
one network that was trained for any part of the data: the twist of Guarniero, Johansen and Lee
(2017), "The iterated auxiliary particle filter", equation 6, learned once for all data sets.
"""

from collections.abc import Callable
from typing import Any

from ...ppl.errors import ProgramError
from ...ppl.twist import Twist
from .posterior import NeuralPosterior


def lookahead(posterior: NeuralPosterior, read: Callable[..., tuple[Any, Any]]) -> Twist:
    """The twist log q(x | data to come) - log q(x | nothing), nats up to a constant.

    The network is of a program of one stretch of the series: it draws a state by any law that is
    wide enough (it cancels), lets the model go on from there, and draws the data to come, with what
    tells them apart (the steps that are left, say). What is not there is left unknown.

        posterior = amortized.npe(key, stretch, ["y", "left"], latents=["x"], masked=True)
        SMC(n, twist=amortized.lookahead(posterior, read))

    Law: as of any `Twist`, the target is kept whatever the network says; the better it is, the less
    the evidence varies. All states of a particle filter share one pass of the encoder.

    Args:
        posterior: of the state given data to come, trained with `masked=True`.
        read: `read(state, t, *args) -> (latents, data)`: the choices that the state is in the
            training program, and the data from step t on, `ppl.Partial(value, mask)` where they may
            be unknown; `args` are the model's. See `NeuralPosterior.at`.

    Raises:
        ProgramError: the network was not trained for parts of the data.
    """
    if not posterior.inputs.masked:
        raise ProgramError(
            "a lookahead compares the law of a state given data with that given none: train the "
            "network for any part of the data, npe(..., masked=True)"
        )

    def log_psi(state, t, posterior, nothing, *args):
        latents, data = read(state, t, *args)
        z = posterior.layout.position(latents)
        return posterior.at(data).log_prob(z) - nothing.log_prob(z)

    return Twist(log_psi).bind(posterior, posterior.at({}))
