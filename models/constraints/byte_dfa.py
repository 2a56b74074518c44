r"""Regular expressions as deterministic automata over bytes, by the `outlines-core` library.

Its `Index` over a vocabulary of the 256 bytes is the automaton of Rust's `regex-automata`, read as
a table. Built from the pattern alone it would be wrong for whole matches: that automaton stops at
the first alternative that matches, so that `a|ab` has no "ab". A pattern that ends in `\z` keeps
all alternatives to the end of the text. A line feed before the pattern stands for the beginning of
the text; it is consumed here.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

_BEGIN = "\n"
_END = 256


class ByteDFA(NamedTuple):
    """States 0 (dead), 1 (start), ...; `table[state, byte]` is the next one."""

    table: np.ndarray
    accepting: np.ndarray


@functools.lru_cache(maxsize=16)
def byte_dfa(pattern: str) -> ByteDFA:
    """The automaton of the UTF-8 texts that `pattern` matches as a whole.

    Raises ValueError for what is no regular expression, and for a pattern that matches nothing.
    """
    index = _index(f"{_BEGIN}(?:{_without_begin(pattern)})\\z", pattern)
    found: dict[int, dict[int, int]] = index.get_transitions()
    start = found.get(index.get_initial_state(), {}).get(ord(_BEGIN))
    if start is None:
        raise ValueError(_nothing(pattern))
    del found[index.get_initial_state()]
    number = {start: 1}
    for state in found:
        number.setdefault(state, len(number) + 1)
    table = np.zeros((len(number) + 1, 256), np.int32)
    accepting = np.zeros(len(number) + 1, bool)
    for state, following in found.items():
        row = number[state]
        accepting[row] = following.pop(_END, None) is not None
        if following:
            table[row, list(following)] = [number[s] for s in following.values()]
    if not accepting.any():
        raise ValueError(_nothing(pattern))
    return ByteDFA(table, accepting)


def outlines() -> Any:
    """The module `outlines_core`, or an ImportError that says how to get it."""
    try:
        import outlines_core
    except ImportError as error:
        raise ImportError(
            "regular expressions and JSON schemas need outlines-core: pip install 'feynkac[text]'"
        ) from error
    return outlines_core


@functools.cache
def _all_bytes() -> Any:
    return outlines().Vocabulary(_END, {bytes([byte]): [byte] for byte in range(256)})


def _index(anchored: str, pattern: str) -> Any:
    vocabulary = _all_bytes()
    try:
        return outlines().Index(anchored, vocabulary)
    except ValueError as error:
        if "no transitions" in str(error):
            raise ValueError(_nothing(pattern)) from error
        raise ValueError(
            f"the pattern {pattern!r} is no regular expression that an automaton can be built "
            f"from ({error}). Look-around, back-references and Unicode word boundaries are not "
            r"regular: leave them out (for a word boundary write (?-u:\b)); the syntax is that of "
            "Rust's regex, in which { } [ ] ( ) . * + ? | \\ ^ $ are written with a backslash"
        ) from error


def _nothing(pattern: str) -> str:
    return (
        f"the pattern {pattern!r}, or a part of it, matches no text at all: look for an empty "
        "class such as [^\\s\\S], or an anchor in the middle, and remove it"
    )


def _without_begin(pattern: str) -> str:
    r"""The pattern less the `^` and `\A` that begin an alternative of it: they say nothing here.

    Raises ValueError where one is elsewhere, and for brackets that do not match.
    """
    kept: list[str] = []
    at, depth, in_class, fresh = 0, 0, 0, True
    while at < len(pattern):
        here = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        at += len(here)
        if in_class:
            in_class += (here == "[") - (here == "]")
        elif here in ("^", "\\A"):
            if depth or not fresh:
                raise ValueError(
                    f"the pattern {pattern!r} has {here} inside: it matches whole texts, so leave "
                    "the anchors out"
                )
            continue
        elif here == "[":
            in_class = 1
            negation = "^" if pattern[at : at + 1] == "^" else ""
            literal = "]" if pattern[at + len(negation) :][:1] == "]" else ""
            here, at = here + negation + literal, at + len(negation + literal)
        depth += (here == "(") - (here == ")") if not in_class else 0
        if depth < 0:
            raise ValueError(f"the pattern {pattern!r} has a ) without its (")
        fresh = depth == 0 and not in_class and here == "|"
        kept.append(here)
    return "".join(kept)
