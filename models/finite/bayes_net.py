"""Finite Bayesian network given by its tables: exact marginals, evidence and posterior samples.

Variable elimination in log space; Koller and Friedman, "Probabilistic Graphical Models" (2009),
algorithm 9.1, with the greedy min-weight order of section 9.4.3.
"""

from collections.abc import Mapping, Sequence
from math import prod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...ppl.distributions import Token
from ...ppl.program import Program, bind, program
from ._log_space import (
    TableLike,
    check_indices,
    check_rows,
    check_shape,
    draw,
    log_sum_exp,
    normalize,
)

Values = Mapping[str, Int[Array, ""] | int]


class BayesNet(eqx.Module):
    """Finite nodes in topological order, each with a table: p(values) = prod p(node | parents).

    `log_tables[i]` (nats; -inf is a zero) has one axis for each parent of node i, in the order of
    `parents[i]`, then one for the node, over which it is normalized. Evidence is a dict from names
    to values.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    parents: tuple[tuple[str, ...], ...] = eqx.field(static=True)
    log_tables: tuple[Float[Array, "..."], ...]

    def __init__(
        self,
        names: Sequence[str],
        parents: Sequence[Sequence[str]],
        log_tables: Sequence[TableLike],
    ) -> None:
        """ValueError if parents do not come first, or shapes or sums are wrong."""
        tables = tuple(jnp.asarray(table, dtype=float) for table in log_tables)
        if not len(names) == len(parents) == len(tables):
            raise ValueError(
                f"Give one entry a node, but there are {len(names)} names, {len(parents)} lists "
                f"of parents and {len(tables)} tables."
            )
        if len(set(names)) < len(names):
            raise ValueError(f"Node names must differ, but they are {list(names)}.")
        sizes: dict[str, int] = {}
        for name, above, table in zip(names, parents, tables, strict=True):
            missing = [p for p in above if p not in sizes]
            if missing:
                raise ValueError(
                    f"The parents {missing} of '{name}' do not come before it. Instead of this "
                    f"order list every node after its parents (a cycle has no such order)."
                )
            if len(set(above)) < len(above):
                raise ValueError(f"'{name}' names a parent twice: {list(above)}.")
            if table.ndim == 0:
                raise ValueError(f"The table of '{name}' is a scalar; its last axis is its values.")
            shape = (*(sizes[p] for p in above), table.shape[-1])
            check_shape(f"The table of '{name}'", table, shape, f"parents {list(above)}")
            check_rows(f"The table of '{name}'", table)
            sizes[name] = table.shape[-1]
        self.names = tuple(names)
        self.parents = tuple(tuple(above) for above in parents)
        self.log_tables = tables

    @property
    def sizes(self) -> dict[str, int]:
        """Number of values of each node."""
        return {
            name: table.shape[-1] for name, table in zip(self.names, self.log_tables, strict=True)
        }

    def log_joint(self, values: Values) -> Float[Array, ""]:
        """Log probability (nats) of a value for every node."""
        missing = [name for name in self.names if name not in values]
        if missing:
            raise ValueError(f"No value for {missing}; for a partial assignment use log_evidence.")
        return self.log_evidence(values)

    def log_evidence(self, given: Values) -> Float[Array, ""]:
        """Log p(given), nats; -inf if it is impossible."""
        return self.log_marginal((), given)

    def log_marginal(
        self, query: Sequence[str], given: Values | None = None
    ) -> Float[Array, "..."]:
        """Log p(query, given), nats: one axis for each name of `query`, in that order."""
        given = {} if given is None else given
        query = tuple(query)
        self._check(query, given)
        remaining = [
            _restrict((*above, name), table, given)
            for name, above, table in zip(self.names, self.parents, self.log_tables, strict=True)
        ]
        hidden = {name for name in self.names if name not in given} - set(query)
        while hidden:
            scope, name = min((self._scope_with(name, remaining), name) for name in hidden)
            joined = _product([f for f in remaining if name in f[0]], scope[1], self.sizes)
            remaining = [f for f in remaining if name not in f[0]]
            remaining.append(
                (
                    tuple(n for n in scope[1] if n != name),
                    log_sum_exp(joined, axis=scope[1].index(name)),
                )
            )
            hidden.remove(name)
        return _product(remaining, query, self.sizes)

    def posterior(self, query: Sequence[str], given: Values | None = None) -> Float[Array, "..."]:
        """P(query | given) as `log_marginal` lays it out; NaN if `given` is impossible."""
        joint = self.log_marginal(query, given)
        return normalize(joint, axis=tuple(range(joint.ndim)))

    def posterior_sample(
        self, key: PRNGKeyArray, given: Values | None = None
    ) -> dict[str, Int[Array, ""]]:
        """Draw all nodes exactly from p(. | given); the hidden ones are -1 if it is impossible."""
        values = {} if given is None else {name: jnp.asarray(v) for name, v in given.items()}
        possible = self.log_evidence(values) > -jnp.inf
        for name, sub in zip(self.names, jax.random.split(key, len(self.names)), strict=True):
            if name not in values:
                values[name] = draw(sub, self.log_marginal((name,), values))
        hidden = set(values) - set(given or {})
        return {n: jnp.where(possible, v, -1) if n in hidden else v for n, v in values.items()}

    def program(self) -> Program:
        """Return the same law as a program without args: one site a node; it returns the values."""
        return bind(program(_sample), self)

    def _check(self, query: tuple[str, ...], given: Values) -> None:
        unknown = [name for name in (*query, *given) if name not in self.names]
        if unknown:
            raise ValueError(f"No nodes named {unknown}; the nodes are {list(self.names)}.")
        if set(query) & set(given) or len(set(query)) < len(query):
            raise ValueError(
                f"A name may be asked or given once, but {list(query)} | {list(given)}."
            )
        for name, value in given.items():
            check_indices(f"The value of '{name}'", jnp.asarray(value), self.sizes[name])

    def _scope_with(self, name: str, factors: list) -> tuple[int, tuple[str, ...]]:
        """Size and axes of the product of the factors that hold `name`."""
        touched = {n for scope, _ in factors if name in scope for n in scope}
        axes = tuple(n for n in self.names if n in touched)
        return prod(self.sizes[n] for n in axes), axes


def _sample(ctx, net):
    values = {}
    for name, above, table in zip(net.names, net.parents, net.log_tables, strict=True):
        row = table[tuple(values[p] for p in above)]
        values[name] = ctx.sample(name, Token(row, validate_args=False))
    return values


def _restrict(scope, table, given):
    for name in scope:
        if name in given:
            kept = tuple(n for n in scope if n != name)
            table = jnp.take(table, jnp.asarray(given[name]), axis=scope.index(name), mode="fill")
            scope = kept
    return scope, table


def _product(factors, axes, sizes):
    """Sum of log factors, laid out over `axes`."""
    total = jnp.zeros(tuple(sizes[n] for n in axes))
    for scope, table in factors:
        order = sorted(range(len(scope)), key=lambda i, scope=scope: axes.index(scope[i]))
        shape = tuple(sizes[n] if n in scope else 1 for n in axes)
        total = total + jnp.transpose(table, order).reshape(shape)
    return total
