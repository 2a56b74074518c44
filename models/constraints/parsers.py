"""llguidance on the host: which tokens may follow a prefix, kept by prefix.

llguidance (Microsoft, Earley parser with a derivative-based lexer) walks the trie of a
vocabulary's tokens. Its forcing of canonical tokenizations is switched off: every token path that
spells a text of the grammar counts.
"""

import functools
import json
import re
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from ..language.vocabulary import Vocabulary

ALIVE, DEAD, BROKEN = 0, 1, 2
"""A prefix can go on or end; it cannot; the parser gave up on it."""

_OPTIONS = re.compile(r"^%llguidance\s+(\{.*\})[ \t]*$", re.MULTILINE)
# What llguidance reports where a text cannot go on; all else is a limit that it ran into.
_NO_WAY_ON = ("NoExtension", "Parser Error: token")


class GrammarError(ValueError):
    """The grammar is malformed or allows no text; the message says where."""


def engine() -> Any:
    """The package llguidance; ImportError with advice without it."""
    try:
        import llguidance
        import llguidance.numpy
    except ImportError as error:
        raise ImportError(
            "grammars need the package llguidance: pip install 'feynkac[text]'"
        ) from error
    return llguidance


def prepared(lark: str) -> str:
    """The grammar with canonical forcing switched off; `GrammarError` if it is malformed."""
    found = _OPTIONS.search(lark)
    options = json.loads(found[1]) if found else {}
    header = "%llguidance " + json.dumps({**options, "no_forcing": True})
    body = lark if found is None else lark[: found.start()] + lark[found.end() :]
    text = f"{header}\n{body}"
    problem = engine().LLMatcher.validate_grammar(text)
    if problem:
        raise GrammarError(f"the grammar is malformed: {problem}")
    return text


class _Tokens:
    """A vocabulary in the form that llguidance reads."""

    def __init__(self, vocabulary: Vocabulary):
        text = set(vocabulary.texts)
        self.tokens = [
            raw if i in text else b"<|%d|>" % i for i, raw in enumerate(vocabulary.token_bytes)
        ]
        self.special_token_ids = [i for i in range(len(self.tokens)) if i not in text]
        self.eos_token_id, self.bos_token_id = vocabulary.eos, None

    def __call__(self, text: bytes) -> list[int]:
        return []  # for canonical forms, which are not asked for


@functools.lru_cache(maxsize=4)
def _tokenizer(vocabulary: Vocabulary) -> Any:
    wrapped = engine().TokenizerWrapper(_Tokens(vocabulary))
    return engine().LLTokenizer(wrapped, n_vocab=vocabulary.size)


class Parsers:
    """The states of a grammar's parser after prefixes, and the masks of what may follow.

    A state is a copy of its parent's, one token on, and is kept for the last `size` prefixes; what
    was dropped is parsed again, so that the answer to a prefix is always the same.
    """

    def __init__(self, grammar: str, vocabulary: Vocabulary, size: int):
        self.eos, self.size, self.words = vocabulary.eos, size, -(-vocabulary.size // 32)
        tokenizer = _tokenizer(vocabulary)
        self._fill = engine().numpy.fill_next_token_bitmask
        root = engine().LLMatcher(tokenizer, grammar, log_level=0)
        if root.is_error():
            raise GrammarError(f"the grammar is malformed: {root.get_error()}")
        self.root = self._entry(root)
        if self.root[2] != ALIVE:
            raise GrammarError(
                "the grammar allows no text: no token of the vocabulary can begin one, and the "
                f"empty text is none.\n{grammar}"
            )
        self._kept: OrderedDict[bytes, tuple] = OrderedDict()
        self._lock = threading.Lock()

    def after(self, ids: np.ndarray) -> tuple[np.ndarray, int]:
        """The packed mask [words] of what may follow token ids, and whether anything may."""
        ids = np.ascontiguousarray(ids, np.int32)
        with self._lock:
            _, mask, state = self._reach(ids)
        return mask, state

    def _reach(self, ids: np.ndarray) -> tuple:
        count = len(ids)
        while count:
            entry = self._kept.get(ids[:count].tobytes())
            if entry is not None:
                break
            count -= 1
        else:
            entry = self.root
        if count == len(ids):
            if count:
                self._kept.move_to_end(ids.tobytes())
            return entry
        matcher = entry[0].deep_copy()
        matcher.consume_tokens(ids[count:].tolist())
        entry = self._entry(matcher)
        self._kept[ids.tobytes()] = entry
        if len(self._kept) > self.size:
            self._kept.popitem(last=False)
        return entry

    def _entry(self, matcher: Any) -> tuple:
        """A matcher with its mask: the end only where the text is whole."""
        mask = np.zeros((1, self.words), np.int32)
        whole = not matcher.is_error() and matcher.is_accepting()
        if not matcher.is_error():
            self._fill(matcher, mask)
        bits = mask[0].view(np.uint32)
        bit = np.uint32(1) << np.uint32(self.eos % 32)
        bits[self.eos // 32] &= ~bit
        if matcher.is_error():
            bits[:] = 0
        if whole:
            bits[self.eos // 32] |= bit
        broken = matcher.is_error() and not matcher.get_error().startswith(_NO_WAY_ON)
        return matcher, mask[0], BROKEN if broken else ALIVE if bits.any() else DEAD
