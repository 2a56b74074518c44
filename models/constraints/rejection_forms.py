"""Two ways to estimate how likely a token passes a check, with the token drawn.

p is the model's law of a token, c the check, Z = sum p c, q = p c / Z. Each form draws x ~ q and
Z-hat with E[Z-hat | x] = Z from few checks (Lipkin et al. 2025, arXiv 2504.05410). Both end at
`limit` rejected candidates, exactly: then E[Z-hat 1{x = a}] = p(a) c(a) still, a draw without
result counting as 0.

The law of such a run given its token a, weighted by Z-hat / p(a), is again a run of the same kind,
in which a is retained; it estimates q(a) by p(a) / Z-hat (`retained`).

The runs are Python generators: they yield a candidate and are sent whether it passes, so that one
loop on the host runs a population of them in rounds, a batch of checks at a time.
"""

from collections.abc import Generator

import equinox as eqx

from .urn import Urn

Drawing = Generator[int, bool, tuple[int | None, float]]


class Recursive(eqx.Module):
    """Without replacement: few checks where the model is sure of what is wrong.

    With S the tokens not rejected yet and p_S their law, at the first token x that passes

        Z-hat = p(S) (p_S(x) + (1 - p_S(x)) m),

    m the fraction that passes of `checks` more draws from p_S without x: an unbiased estimate of
    Z_S, as Z_S = p_S(x) + (1 - p_S(x)) Z_{S - x}, and Z = p(S) Z_S when all outside S fail.

    With `limit`, the last candidate allowed has Z-hat = p(S) if it passes, else 0. Retained, a
    candidate that passes and is not x is itself one of the further draws: the weighted law of
    those draws is the mixture of all free, with weight p_S(x), and one that passes, with 1 - p_S(x)
    times Z_{S - x}, which is how candidates come.
    """

    checks: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if self.checks < 1:
            raise ValueError(f"Recursive takes at least 1 further check, got {self.checks}")

    def draw(self, urn: Urn, limit: int | None, retained: int | None = None) -> Drawing:
        """A run: the token (None if there is none, or at the limit) and Z-hat."""
        rejected, last = 0, None
        while urn.left > 0:
            left, final = urn.left / urn.whole, rejected + 1 == limit
            if final and retained is not None:
                return retained, left
            token = urn.draw()
            if (yield token):
                if final:
                    return token, left
                return (yield from self._finish(urn, left, token, retained))
            urn.remove(token)
            rejected, last = rejected + 1, token
            if final:
                break
        return last, 0.0

    def _finish(self, urn: Urn, left: float, token: int, retained: int | None) -> Drawing:
        x = token if retained is None else retained
        passed = int(token != x)
        share = min(urn.probability(x) / (left * urn.whole), 1.0)
        urn.remove(x)
        if urn.left <= 0:
            return x, left
        for _ in range(self.checks - passed):
            passed += yield urn.draw()
        return x, left * (share + (1 - share) * passed / self.checks)


class Geometric(eqx.Module):
    """With replacement, until `accepts` (at least two) candidates pass; x is the first of them.

    With r rejected, Z-hat = (accepts - 1) / (accepts + r - 1); with n passed at `limit` rejects,
    min(n, accepts - 1) / (n + r - 1): of all orders in which a run with these counts may come, the
    share that begins with a pass (Rao-Blackwell; Girshick, Mosteller and Savage 1946). What was
    rejected once is not drawn or checked again: the times it would have come are drawn at once, as
    a geometric number.

    Retained, the first pass is x, and the run goes on from there.
    """

    accepts: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        if self.accepts < 2:
            raise ValueError(f"Geometric takes at least 2 accepts, got {self.accepts}")

    def draw(self, urn: Urn, limit: int | None, retained: int | None = None) -> Drawing:
        """A run: the token (None if there is none, or at the limit) and Z-hat."""
        x, last, passed, rejected = retained, None, int(retained is not None), 0
        known: set[int] = set()
        while passed < self.accepts and (limit is None or rejected < limit):
            if urn.left <= 0:  # everything failed
                return last, 0.0
            rejected += urn.repeats()
            if limit is not None and rejected >= limit:
                rejected = limit
                break
            token = urn.draw()
            if token in known or (yield token):
                known.add(token)
                passed, x = passed + 1, token if x is None else x
            else:
                urn.remove(token)
                rejected, last = rejected + 1, token
        if x is None:
            return last, 0.0
        return x, min(self.accepts - 1, passed) / (passed + rejected - 1)
