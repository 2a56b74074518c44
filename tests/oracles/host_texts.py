"""A model of a few tokens whose texts can all be written down, for potentials on the host."""

import itertools

import jax.numpy as jnp
import numpy as np

from feynkac import models
from feynkac.models.finite import MarkovLanguageModel, MarkovLM

EOS, PROMPT = 0, 1
TOKENS = (b"", b"(", b")", b"()")
VOCABULARY = models.Vocabulary(TOKENS, EOS)
FIRST = np.array([0.1, 0.4, 0.2, 0.3])
TABLE = np.array(
    [[0.25, 0.25, 0.25, 0.25], [0.2, 0.3, 0.4, 0.1], [0.35, 0.25, 0.4, 0.0], [0.5, 0.1, 0.3, 0.1]]
)
with np.errstate(divide="ignore"):
    LM = MarkovLanguageModel(MarkovLM(jnp.asarray(np.log(FIRST)), jnp.asarray(np.log(TABLE)), EOS))


def written(ids) -> str:
    """The text of token ids."""
    return b"".join(TOKENS[i] for i in ids).decode()


def log_p(ids, ended=True) -> float:
    """Log probability of a text after the prompt [PROMPT]."""
    path = [*ids, EOS] if ended else list(ids)
    p = np.prod([TABLE[a, b] for a, b in itertools.pairwise([PROMPT, *path])])
    return float(np.log(p)) if p > 0 else -np.inf


def texts(steps):
    """All texts that end within the steps."""
    for n in range(steps):
        yield from itertools.product(range(1, len(TOKENS)), repeat=n)


def log_evidence(log_weight, steps) -> float:
    """Log of the sum over texts of p(x) exp(log_weight(text of x))."""
    return float(np.logaddexp.reduce([log_p(x) + log_weight(written(x)) for x in texts(steps)]))


def z_score(log_values, log_exact) -> float:
    """Of the mean of exp(log_values) against exp(log_exact)."""
    ratio = np.exp(np.asarray(log_values, np.float64) - log_exact)
    return float((ratio.mean() - 1) / (ratio.std() / np.sqrt(ratio.size)))


def balanced(text: str) -> bool:
    """Is every parenthesis closed, in order?"""
    return closable(text) and text.count("(") == text.count(")")


def closable(text: str) -> bool:
    """Can it become balanced?"""
    depths = itertools.accumulate(1 if c == "(" else -1 for c in text)
    return all(depth >= 0 for depth in depths)
