"""JSON texts by a pushdown automaton on bytes (RFC 8259), its stack one integer."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from .alphabets import BytePotential

_NAMES = (
    "dead value first_item first_key key colon after "
    "string escape hex1 hex2 hex3 hex4 name name_escape name_hex1 name_hex2 name_hex3 name_hex4 "
    "minus zero digits point fraction exponent sign power t tr tru f fa fal fals n nu nul"
).split()
_MODE = {name: index for index, name in enumerate(_NAMES)}
_OPEN_OBJECT, _OPEN_ARRAY, _CLOSE_OBJECT, _CLOSE_ARRAY, _COMMA = range(64, 69)
# The fewest bytes that lead from each mode to the end of its innermost value (brackets apart).
_NEEDS = dict.fromkeys(_NAMES, 0)
_NEEDS |= {"value": 1, "key": 4, "colon": 2, "string": 1, "escape": 2, "name": 3, "name_escape": 4}
_NEEDS |= {"minus": 1, "point": 1, "exponent": 1, "sign": 1, "t": 3, "tr": 2, "tru": 1, "n": 3}
_NEEDS |= {"f": 4, "fa": 3, "fal": 2, "fals": 1, "nu": 2, "nul": 1}
_NEEDS |= {f"hex{i}": 6 - i for i in range(1, 5)} | {f"name_hex{i}": 8 - i for i in range(1, 5)}
_WHOLE = {"after", "zero", "digits", "fraction", "power"}


def _table() -> np.ndarray:
    """Next mode, or what to do with the stack, for each mode and byte."""
    table = np.zeros((len(_NAMES), 256), np.int32)

    def on(mode: str, symbols: bytes, what: str | int) -> None:
        table[_MODE[mode], list(symbols)] = _MODE[what] if isinstance(what, str) else what

    space, digits, hexadecimal = b" \t\n\r", b"0123456789", b"0123456789abcdefABCDEF"
    plain = bytes(b for b in range(0x20, 256) if b not in b'"\\')
    for mode in ("value", "first_item"):
        on(mode, space, mode)
        on(mode, b'"', "string")
        on(mode, b"{", _OPEN_OBJECT)
        on(mode, b"[", _OPEN_ARRAY)
        on(mode, b"-", "minus")
        on(mode, b"0", "zero")
        on(mode, digits[1:], "digits")
        for letter in "tfn":
            on(mode, letter.encode(), letter)
    on("first_item", b"]", _CLOSE_ARRAY)
    for mode in ("first_key", "key"):
        on(mode, space, mode)
        on(mode, b'"', "name")
    on("first_key", b"}", _CLOSE_OBJECT)
    on("colon", space, "colon")
    on("colon", b":", "value")
    for mode in sorted(_WHOLE):
        on(mode, space, "after")
        on(mode, b",", _COMMA)
        on(mode, b"}", _CLOSE_OBJECT)
        on(mode, b"]", _CLOSE_ARRAY)
    for mode, escape, hex_, end in (
        ("string", "escape", "hex", "after"),
        ("name", "name_escape", "name_hex", "colon"),
    ):
        on(mode, plain, mode)
        on(mode, b"\\", escape)
        on(mode, b'"', end)
        on(escape, b'"\\/bfnrt', mode)
        on(escape, b"u", f"{hex_}1")
        for i in range(1, 5):
            on(f"{hex_}{i}", hexadecimal, f"{hex_}{i + 1}" if i < 4 else mode)
    for mode, zero, other in (
        ("minus", "zero", "digits"),
        ("point", "fraction", "fraction"),
        ("exponent", "power", "power"),
        ("sign", "power", "power"),
    ):
        on(mode, digits, other)
        on(mode, b"0", zero)
    on("exponent", b"+-", "sign")
    for mode in ("digits", "fraction", "power"):
        on(mode, digits, mode)
    for mode in ("zero", "digits"):
        on(mode, b".", "point")
    for mode in ("zero", "digits", "fraction"):
        on(mode, b"eE", "exponent")
    for word in ("true", "false", "null"):
        for i in range(1, len(word)):
            on(word[:i], word[i].encode(), word[: i + 1] if i + 1 < len(word) else "after")
    return table


class JSONBytes(BytePotential):
    r"""Weight 1 for a text that is one JSON value, brackets at most `max_depth` deep, else 0.

    Law: a prefix weighs 1 if and only if it can be continued to such a text within what remains.
    Any bytes may stand in strings: times `Characters(Without("\ufffd"))` they are UTF-8. Draws are
    guided.
    """

    table: Int[Array, "modes 256"]
    needs: Int[Array, "modes"]
    whole: Int[Array, "modes"]
    max_depth: Int[Array, ""]

    def __init__(self, max_depth: int = 31):
        if not 0 <= max_depth <= 32:
            raise ValueError(f"the stack holds up to 32 brackets, got max_depth={max_depth}")
        self.table = jnp.asarray(_table())
        self.needs = jnp.asarray([_NEEDS[name] for name in _NAMES], jnp.int32)
        self.whole = jnp.asarray([name in _WHOLE for name in _NAMES], jnp.int32)
        self.max_depth = jnp.asarray(max_depth, jnp.int32)

    @property
    def looks_ahead(self) -> bool:
        """Always."""
        return True

    def start(self, length):
        """Mode, stack (the innermost bracket its lowest bit, 1 for an object), depth."""
        return jnp.int32(_MODE["value"]), jnp.uint32(0), jnp.int32(0)

    def advance(self, state, symbol, context=None):
        """One more byte."""
        mode, stack, depth = state
        code = self.table[mode, symbol]
        opens = (code == _OPEN_OBJECT) | (code == _OPEN_ARRAY)
        closes = (code == _CLOSE_OBJECT) | (code == _CLOSE_ARRAY)
        in_object = (stack & jnp.uint32(1)) == 1
        in_array = ~in_object
        right = jnp.where(code == _CLOSE_OBJECT, in_object, in_array)
        well = jnp.where(opens, depth < self.max_depth, (depth > 0) & (right | (code == _COMMA)))
        goal = jnp.where(code == _OPEN_OBJECT, _MODE["first_key"], _MODE["first_item"])
        goal = jnp.where(closes, _MODE["after"], goal)
        next_part = jnp.where(in_object, _MODE["key"], _MODE["value"])
        goal = jnp.where(code == _COMMA, next_part, goal)
        mode = jnp.where(code < 64, code, jnp.where(well, goal, 0)).astype(jnp.int32)
        pushed = (stack << 1) | (code == _OPEN_OBJECT).astype(jnp.uint32)
        stack: UInt32[Array, ""] = jnp.where(opens, pushed, jnp.where(closes, stack >> 1, stack))
        return mode, stack, depth + opens.astype(jnp.int32) - closes.astype(jnp.int32)

    def log_prefix(self, state, remaining=None):
        """0 or -inf."""
        mode, _, depth = state
        possible = mode != _MODE["dead"]
        if remaining is not None:
            possible = possible & (self.needs[mode] + depth < remaining)
        return jnp.where(possible, 0.0, -jnp.inf)

    def log_complete(self, state, context=None):
        """0 or -inf."""
        mode, _, depth = state
        return jnp.where((self.whole[mode] == 1) & (depth == 0), 0.0, -jnp.inf)
