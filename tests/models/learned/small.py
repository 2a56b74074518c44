"""A tiny language model under a reward of whole texts, with everything about it by enumeration."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from feynkac import models
from feynkac.models import learned
from feynkac.models.finite import MarkovLanguageModel, MarkovLM

EOS, LENGTH, BETA = 2, 4, 0.7
TABLE = np.array([[0.3, 0.5, 0.2], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5]])
INITIAL = np.array([0.5, 0.4, 0.1])


def rewarded(tokens, count):
    """Two b, and not three tokens; at most 0."""
    on = jnp.arange(tokens.shape[0]) < count
    b = jnp.sum(jnp.where(on & (tokens == 1), 1.0, 0.0))
    return -1.2 * jnp.abs(b - 2.0) - jnp.where(count == 3, 0.5, 0.0)


def plain(length=LENGTH):
    """The model that writes; what is unfinished counts as it is."""
    lm = MarkovLanguageModel(MarkovLM(np.log(INITIAL), np.log(TABLE), eos=EOS))
    return models.generation(lm, [], length)


def tilted(length=LENGTH, beta=BETA):
    """p0(x) exp(r(x) / beta) over ended texts."""
    return learned.tilted(plain(length), models.DeviceReward(rewarded), beta)


def written(text, t, *_):
    """One-hot of all that was written: 2^length - 1 prefixes that have not ended."""
    so_far, length = text.carried.value[0], text.carried.value[0].tokens.shape[0]
    places = jnp.arange(length)
    number = jnp.sum(jnp.where(places < so_far.count, so_far.tokens * 2**places, 0))
    return jax.nn.one_hot(2**so_far.count - 1 + number, 2**length - 1)


def texts(length=LENGTH):
    """All texts of the plain model, 0 after the end, and their log probabilities."""
    rows, log_p = [], []
    for row in itertools.product(range(3), repeat=length):
        ended = row.index(EOS) + 1 if EOS in row else length
        if any(row[ended:]):
            continue
        steps = [INITIAL[row[0]], *(TABLE[a, b] for a, b in itertools.pairwise(row[:ended]))]
        rows.append(row)
        log_p.append(np.log(steps).sum())
    return np.array(rows, np.int32), np.array(log_p)


class Enumerated:
    """All texts of the plain model as weighted walks, and the exact twists.

    `walks` is as if drawn from the model: each text weighs its probability. `state` [prefix] and
    `next` [prefix, token] are log psi*, NaN where never.
    """

    def __init__(self, length=LENGTH):
        model = tilted(length)
        self.view = learned.text_view(model, written)
        self.tokens, self.log_p = texts(length)
        n = len(self.tokens)
        log_p = jnp.asarray(self.log_p, float)
        walks = learned.walks(model, {"token": jnp.asarray(self.tokens)}, self.view, law=True)
        log_weights = log_p + walks.log_gain.sum(1)
        ratio = walks.log_ratio.at[:, 0].add(log_p)
        self.walks = replace(walks, log_ratio=ratio, log_weights=log_weights)
        # As particles have it: their mean weight is the evidence.
        self.positives = replace(self.walks, log_weights=log_weights + np.log(n))
        self.negatives = replace(self.walks, log_ratio=ratio.at[:, 0].add(np.log(n)))
        self.log_posterior = np.asarray(log_weights)
        self.log_evidence = float(np.logaddexp.reduce(self.log_posterior))
        self.log_posterior = self.log_posterior - self.log_evidence
        active = np.asarray(walks.active)
        prefix, p = np.asarray(walks.features).argmax(-1), np.exp(self.log_p)
        phi = np.exp(np.asarray(walks.log_gain.sum(1)))
        self.state = np.full(2**length - 1, np.nan)
        self.next = np.full((2**length - 1, 3), np.nan)
        with np.errstate(divide="ignore"):
            for k in range(2**length - 1):
                here = ((prefix == k) & active).any(1)
                self.state[k] = np.log((p * phi)[here].sum() / p[here].sum())
                for v in range(3):
                    there = ((prefix == k) & active & (self.tokens == v)).any(1)
                    self.next[k, v] = np.log((p * phi)[there].sum() / p[there].sum())

    def of(self, head):
        """A head's output for every prefix."""
        return np.asarray(head(jnp.eye(len(self.state))))
