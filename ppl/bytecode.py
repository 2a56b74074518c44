"""What a code object contains: its digest, and the names it looks up when it runs."""

import dis
import functools
import hashlib
import types
from typing import Any


class Contents:
    """The digest of a code object and, with inner functions, the names it may look up.

    `globals` by name, `imports` of modules, and `attributes` of anything.
    """

    __slots__ = ("digest", "globals", "attributes", "imports")

    def __init__(self, code: types.CodeType):
        loaded, imported, attributes = set(), set(), set()
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                loaded.add(instruction.argval)
            elif instruction.opname == "IMPORT_NAME":
                imported.add(instruction.argval)
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
                attributes.add(instruction.argval)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                inner = contents(constant)
                loaded |= set(inner.globals)
                imported |= set(inner.imports)
                attributes |= set(inner.attributes)
        parts = (
            code.co_code,
            [_constant(c) for c in code.co_consts],
            code.co_names,
            code.co_varnames,
            code.co_freevars,
            code.co_cellvars,
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_flags,
            getattr(code, "co_exceptiontable", b""),
        )
        self.digest = hashlib.sha256(repr(parts).encode()).digest()
        self.globals, self.imports = tuple(sorted(loaded)), tuple(sorted(imported))
        self.attributes = tuple(sorted(attributes))


@functools.lru_cache(maxsize=4096)
def contents(code: types.CodeType) -> Contents:
    """The contents of a code object, which never change, read once."""
    return Contents(code)


def _constant(value: Any) -> Any:
    """A literal with its types spelled out: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if isinstance(value, types.CodeType):
        return contents(value).digest
    if isinstance(value, tuple):
        return [_constant(x) for x in value]
    if isinstance(value, frozenset):
        return ("frozenset", sorted(repr(_constant(x)) for x in value))
    return (type(value).__name__, repr(value))
