"""Kalman filter and smoother with depth logarithmic in time: associative scans.

Särkkä and García-Fernández (2021), "Temporal parallelization of Bayesian smoothers", IEEE
Transactions on Automatic Control 66(1): filter Lemmas 7 and 8, smoother Lemmas 9 and 10.

An element of the filter is p(x_t | x_s, y_{s+1..t}) = N(A x_s + b, C) with p(y_{s+1..t} | x_s) as
an information vector eta and matrix J; one of the smoother p(x_t | x_u, y_{0..t}) is
N(E x_u + g, L).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Bool, Float


def filtered(
    lg: Any, ys: Float[Array, "T m"], observed: Bool[Array, "T"]
) -> tuple[Float[Array, "T n"], Float[Array, "T n n"]]:
    """Means and covariances of x_t given y_0..y_t for a `LinearGaussian`."""
    n = lg.m0.shape[0]
    eye, zero, none = (x.astype(lg.m0.dtype) for x in (jnp.eye(n), jnp.zeros((n, n)), jnp.zeros(n)))
    scale = cho_factor(lg.H @ lg.Q @ lg.H.T + lg.R)
    gain = cho_solve(scale, lg.H @ lg.Q).T
    keep, weigh = eye - gain @ lg.H, cho_solve(scale, lg.H @ lg.F).T
    noise = keep @ lg.Q @ keep.T + gain @ lg.R @ gain.T

    def element(y, seen):
        there = (keep @ lg.F, gain @ y, noise, weigh @ y, weigh @ lg.H @ lg.F)
        blind = (lg.F, none, lg.Q, none, zero)
        return tuple(jnp.where(seen, a, b) for a, b in zip(there, blind, strict=True))

    elements = jax.vmap(element)(ys, observed)
    _, mean, cov = lg._update((lg.m0, lg.P0), ys[0])
    first = (zero, jnp.where(observed[0], mean, lg.m0), jnp.where(observed[0], cov, lg.P0))
    first = (*first, none, zero)
    elements = tuple(x.at[0].set(row) for x, row in zip(elements, first, strict=True))

    def joined(earlier, later):
        A, b, C, eta, J = earlier
        A2, b2, C2, eta2, J2 = later
        # (I + C J2)^-1, of which (I + J2 C)^-1 is the transpose.
        forward = jnp.linalg.solve(eye + C @ J2, eye)
        ahead, back = A2 @ forward, A.T @ forward.T
        return (
            ahead @ A,
            ahead @ (b + C @ eta2) + b2,
            _even(ahead @ C @ A2.T + C2),
            back @ (eta2 - J2 @ b) + eta,
            _even(back @ J2 @ A + J),
        )

    _, means, covs, _, _ = jax.lax.associative_scan(jax.vmap(joined), elements)
    return means, covs


def log_evidence(
    lg: Any,
    moments: tuple[Float[Array, "T n"], Float[Array, "T n n"]],
    ys: Float[Array, "T m"],
    observed: Bool[Array, "T"],
) -> Float[Array, ""]:
    """Log p(y_0..y_{T-1}), nats, from the filter's moments."""
    means, covs = moments
    ahead = jax.vmap(lambda mean, cov: (lg.F @ mean, lg.F @ cov @ lg.F.T + lg.Q))(means, covs)
    first = lg.m0, lg.P0
    predicted = tuple(jnp.concatenate([a[None], b[:-1]]) for a, b in zip(first, ahead, strict=True))
    terms = jax.vmap(lambda moments, y: lg._update(moments, y)[0])(predicted, ys)
    return jnp.sum(jnp.where(observed, terms, 0.0))


def smoothed(
    lg: Any, moments: tuple[Float[Array, "T n"], Float[Array, "T n n"]]
) -> tuple[Float[Array, "T n"], Float[Array, "T n n"]]:
    """Means and covariances of x_t given all data, from the filter's."""

    def element(mean, cov):
        _, _, gain, rest = lg._backward(mean, cov)
        return gain, mean - gain @ (lg.F @ mean), rest

    gains, means, covs = jax.vmap(element)(*moments)
    # Nothing comes after the last.
    last = (jnp.zeros_like(gains[-1]), moments[0][-1], moments[1][-1])
    elements = tuple(x.at[-1].set(row) for x, row in zip((gains, means, covs), last, strict=True))

    def joined(later, earlier):
        E2, g2, L2 = later
        E, g, L = earlier
        return E @ E2, E @ g2 + g, _even(E @ L2 @ E.T + L)

    _, means, covs = jax.lax.associative_scan(jax.vmap(joined), elements, reverse=True)
    return means, covs


def _even(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return 0.5 * (matrix + matrix.T)
