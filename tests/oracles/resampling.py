"""Exact laws of the resamplers by enumeration, in rational arithmetic, straight from the papers.

A law is a dict from the ancestors, one entry a slot, to their probability; weights are normalized
fractions. Deliberately slow and unlike the implementation: the Srinivasan sampling process runs
its pairwise recursion, and a conditional law is Bayes' rule on the unconditional one.
"""

from collections import defaultdict
from fractions import Fraction
from itertools import product
from math import floor


def normalized(weights):
    return [Fraction(w, sum(weights)) for w in weights]


def _independent(slots):
    """The law of independent slots, each a list of probabilities."""
    law = {}
    for a in product(range(len(slots[0])), repeat=len(slots)):
        p = Fraction(1)
        for j, i in enumerate(a):
            p *= slots[j][i]
        if p:
            law[a] = p
    return law


def _repeated(counts):
    return tuple(i for i, c in enumerate(counts) for _ in range(c))


def multinomial(w):
    return _independent([w] * len(w))


def stratified(w):
    n, low, slots = len(w), Fraction(0), [[Fraction(0)] * len(w) for _ in w]
    for i, mass in enumerate(w):
        high = low + n * mass
        for j in range(n):
            slots[j][i] = max(Fraction(0), min(high, j + 1) - max(low, j))
        low = high
    return _independent(slots)


def systematic(w):
    n = len(w)
    ends = [n * sum(w[: i + 1]) for i in range(n)]
    cuts = sorted({e - floor(e) for e in ends} | {Fraction(0), Fraction(1)})
    law = defaultdict(Fraction)
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        u = (low + high) / 2
        law[tuple(sum(e <= j + u for e in ends) for j in range(n))] += high - low
    return dict(law)


def residual(w):
    n = len(w)
    copies = [floor(n * p) for p in w]
    left = n - sum(copies)
    fixed = _repeated(copies)
    if left == 0:
        return {fixed: Fraction(1)}
    remainder = [(n * p - c) / left for p, c in zip(w, copies, strict=True)]
    return {fixed + a: p for a, p in _independent([remainder] * left).items()}


def ssp(w):
    n = len(w)
    law = defaultdict(Fraction)

    def play(first, second, counts, p, mass):
        if mass == 0:
            return
        if second == n:
            final = [c + (1 if i == first and p[i] == 1 else 0) for i, c in enumerate(counts)]
            law[_repeated(final)] += mass
            return
        up = min(p[second], 1 - p[first])
        down = min(p[first], 1 - p[second])
        chance = down / (up + down) if up + down else Fraction(1)
        for change, probability in ((up, chance), (-down, 1 - chance)):
            after, settled = list(p), list(counts)
            after[first] += change
            after[second] -= change
            loser = first if after[first] in (0, 1) else second
            settled[loser] += int(after[loser])
            play(
                second if loser == first else first, second + 1, settled, after, mass * probability
            )

    copies = [floor(n * q) for q in w]
    play(0, 1, copies, [n * q - c for q, c in zip(w, copies, strict=True)], Fraction(1))
    return dict(law)


def killing(w):
    n, top = len(w), max(w)
    slots = [
        [(1 - w[j] / top) * w[i] + (w[j] / top) * (i == j) for i in range(n)] for j in range(n)
    ]
    return _independent(slots)


def conditional(law, w, retained):
    """The law of (ancestors, position) given that `retained` holds the position: Bayes' rule."""
    n = len(w)
    return {
        (a, b): p / (n * w[retained]) for a, p in law.items() for b in range(n) if a[b] == retained
    }
