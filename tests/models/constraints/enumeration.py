"""What a pattern says of all token strings up to a length, by Python's `re`."""

import functools
import itertools
import re

import numpy as np

from feynkac.models.language import Vocabulary

LONGEST = 5
EOS = 3
# Tokens that cross the borders of patterns, and parts of a character, whole only together.
TOKENS = (b"a", b"b", b"ab", b"</s>", b"1", b" b1", b"\xc3", b"\xa9b", "\u00e9".encode(), b"a")
FORBIDDEN = 9
VOCABULARY = Vocabulary((*TOKENS, b""), EOS, [FORBIDDEN])
TEXTS = tuple(i for i in range(len(TOKENS)) if i not in (EOS, FORBIDDEN))

PATTERNS = (
    r"a|ab", r"(a|ab)(b|)", r"a*?b", r"[ab]{2,4}", r"(ab){1,2}1?", r"\u00e9+", r"[a\u00e9]*b",
    r".", r"..", r".{3,5}", r"[^a]*", r"\w+", r"\w+ \w+", r"(a|1)*b?", r"", r"(aa)*", r"a{0,3}1",
    r"^ab$", r"^a|^b1*$", r"\d|a\d", r"(?i)A+B", r"b1( b1)*", r"[\u00e0-\u00ff]b|a",
    r"(a|b)*1(a|b)", r"(?:a(?:b|1)?){2}", r"[ab1 \u00e9]{5}", r"\S*\s?\S{1,2}", r"\xe9{2}|a+",
)  # fmt: skip


@functools.cache
def matches(pattern: str) -> tuple[np.ndarray, ...]:
    """For each length n the array [texts] * n: does the string of these tokens match?"""
    whole = re.compile(pattern)
    known: dict[bytes, bool] = {}

    def match(text: bytes) -> bool:
        try:
            return whole.fullmatch(text.decode()) is not None
        except UnicodeDecodeError:
            return False

    found, texts = [], [b""]
    for n in range(LONGEST + 1):
        for text in texts:
            if text not in known:
                known[text] = match(text)
        found.append(np.array([known[x] for x in texts]).reshape((len(TEXTS),) * n))
        texts = [x + TOKENS[i] for x in texts for i in TEXTS] if n < LONGEST else []
    return tuple(found)


def prefixes(longest: int) -> list[tuple[int, ...]]:
    """All strings of at most `longest` tokens, as positions in TEXTS."""
    each = (itertools.product(range(len(TEXTS)), repeat=n) for n in range(longest + 1))
    return list(itertools.chain.from_iterable(each))


def completions(pattern: str, log_weights: np.ndarray, prefix: tuple, symbols: int) -> float:
    """Sum over the matches that begin so, with at most `symbols` more, of the product of weights.

    The end is a symbol, with its weight; `log_weights` is of all tokens.
    """
    found, total = matches(pattern), 0.0
    weights = np.exp(log_weights[list(TEXTS)])
    for more in range(symbols):
        part = found[len(prefix) + more][prefix].astype(float)
        for _ in range(more):
            part = part @ weights
        total += float(part)
    return total * float(np.exp(log_weights[EOS]))
