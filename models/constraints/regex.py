"""Texts that match a regular expression, put on the tokens of any vocabulary."""

import abc
import functools
from typing import Any

import equinox as eqx

from ...ppl.errors import ProgramError
from ...ppl.potential import Potential
from .automaton import Automaton
from .byte_dfa import byte_dfa
from .tables import FAR, START, Tables, tables, token_functions


class Textual(Potential):
    """A regular set of texts that is not on tokens yet: `over(vocabulary)` is an `Automaton`.

    A product with a model does it by itself, with the model's vocabulary.
    """

    @property
    @abc.abstractmethod
    def regex(self) -> str:
        """The pattern that its texts match."""

    def over(self, vocabulary: Any) -> Automaton:
        """The automaton on a vocabulary's tokens; tables are kept by vocabulary and pattern.

        Raises ValueError for a pattern that is no regular expression, that matches nothing, or
        whose texts cannot be written with these tokens.
        """
        return Automaton.of(tables_over(self.regex, vocabulary))

    def start(self, length):
        """An error: it needs a vocabulary."""
        raise self._without_vocabulary()

    def advance(self, state, symbol, context=None):
        """An error: it needs a vocabulary."""
        raise self._without_vocabulary()

    def log_prefix(self, state, remaining=None):
        """An error: it needs a vocabulary."""
        raise self._without_vocabulary()

    def log_complete(self, state, context=None):
        """An error: it needs a vocabulary."""
        raise self._without_vocabulary()

    def _without_vocabulary(self) -> ProgramError:
        return ProgramError(
            f"{type(self).__name__} is about texts, and symbols are tokens: instead of it use "
            "pattern.over(vocabulary), or multiply it with models.generation(...), which does that"
        )


class Regex(Textual):
    r"""The texts that match a regular expression as a whole: weight 1, all others 0.

    The syntax is that of Rust's `regex` (like Python's, without look-around and back-references).
    The whole text has to match, from its beginning to its end, as by `re.fullmatch`: `a|ab` allows
    "ab", and `^` and `$` around the pattern say nothing. `\d`, `\w` and `\s` are of Unicode: write
    [0-9] for digits that JSON or a calculator reads. The text is the tokens' bytes read as UTF-8;
    characters may be split between tokens.
    """

    pattern: str = eqx.field(static=True)

    @property
    def regex(self) -> str:
        """The pattern."""
        return self.pattern


def lipogram(letters: str) -> Regex:
    """The texts without `letters`, in lower or upper case: weight 1, all others 0."""
    if not letters:
        raise ValueError("say which letters are to be missing")
    cases = {x for c in letters for x in (c, c.lower(), c.upper()) if len(x) == 1}
    return Regex("[^" + "".join(f"\\x{{{ord(x):x}}}" for x in sorted(cases)) + "]*")


@functools.lru_cache(maxsize=32)
def tables_over(pattern: str, vocabulary: Any) -> Tables:
    """The token tables of a pattern, on the host."""
    if not vocabulary.texts:
        raise ValueError(
            "the vocabulary has no token with a text, so that no pattern can be written: give "
            "Vocabulary(token_bytes, eos) the bytes of its tokens"
        )
    dfa = byte_dfa(pattern)
    of_token, functions = token_functions(dfa, vocabulary.token_bytes, vocabulary.texts)
    made = tables(of_token, functions, dfa.accepting, vocabulary.eos)
    if made.distance[START] == FAR:
        raise ValueError(
            f"no text that matches {pattern!r} can be written with the tokens of {vocabulary!r}: "
            "look for characters that they lack, or give the vocabulary a token for each byte"
        )
    return made
