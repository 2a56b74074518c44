"""Tuning a gradient kernel: step size by dual averaging, mass by windows, as in Stan.

Hoffman and Gelman 2014, section 3.2; the windows are BlackJAX's `window_adaptation`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

from ...ppl.compiled import compiled
from ...ppl.distributions import third_party
from ...ppl.partial import Choices
from ...ppl.target import Target, as_target
from .gradient import HMC, NUTS
from .kernel import Kernel
from .start import start
from .unconstrained import View


class Warmed(eqx.Module):
    """A tuned kernel, and where its chains stand: choices [chain, ...] to start from.

    `started` [chain]: did the chain find a start of positive density?
    """

    kernel: Kernel
    choices: Choices
    started: Bool[Array, " chain"]


def warmup(
    key: PRNGKeyArray,
    kernel: Kernel,
    target: Any,
    *,
    n_chains: int = 4,
    steps: int = 500,
    target_acceptance: Float[ArrayLike, ""] = 0.8,
    dense: bool = False,
    init: Choices | None = None,
) -> Warmed:
    """Adapt step size and inverse mass on `n_chains` chains; use with `MCMC(..., init=choices)`.

    The kernel's step size is where the search begins. Each chain adapts by itself; the kernel gets
    the median step size and the mean inverse mass of those that found a start. Sites that the
    kernel does not move stay at their start (choices [chain, ...] in `init`, or draws of the
    model).
    """
    if not isinstance(kernel, (HMC, NUTS)):
        raise ValueError(
            f"warmup tunes HMC and NUTS, got {type(kernel).__name__}: set its step size yourself, "
            "for an acceptance of about 0.57 (MALA) or 0.25 (RandomWalk)"
        )
    acceptance = jnp.asarray(target_acceptance, dtype=float)
    return _warmup(key, kernel, as_target(target), n_chains, steps, acceptance, dense, init)


@compiled
def _warmup(key, kernel, target: Target, n_chains, steps, acceptance, dense, init) -> Warmed:
    import blackjax

    def one(key, init):
        key_start, key_view, key_run = jax.random.split(key, 3)
        trace, started = start(key_start, target, init)
        view = View.of(type(kernel).__name__, key_view, target, trace, kernel.selection, None)
        extra: Any = {"num_integration_steps": kernel.n_leapfrog} if isinstance(kernel, HMC) else {}
        adaptation = blackjax.window_adaptation(
            blackjax.hmc if isinstance(kernel, HMC) else blackjax.nuts,
            view.log_density,
            is_mass_matrix_diagonal=not dense,
            initial_step_size=kernel.step_size,  # pyright: ignore[reportArgumentType]
            target_acceptance_rate=acceptance,
            adaptation_info_fn=lambda *_: None,
            **extra,
        )
        run: Any = adaptation.run
        (state, parameters), _ = run(key_run, view.position, steps)
        mass = parameters["inverse_mass_matrix"]
        return view.choices(state.position), parameters["step_size"], mass, started

    keys = jax.random.split(key, n_chains)
    axes = (0, None if init is None else 0)
    choices, step_size, mass, started = jax.vmap(third_party(one), in_axes=axes)(keys, init)
    step_size = jnp.nanmedian(jnp.where(started, step_size, jnp.nan))
    weight = started.astype(mass.dtype) / jnp.maximum(jnp.sum(started), 1).astype(mass.dtype)
    weight = weight.reshape(-1, *(1,) * (mass.ndim - 1))
    tuned = eqx.tree_at(
        lambda k: (k.step_size, k.inverse_mass),
        kernel,
        (step_size, jnp.sum(weight * mass, axis=0)),
    )
    return Warmed(tuned, choices, started)
