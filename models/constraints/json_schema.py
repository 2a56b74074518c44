"""JSON texts of a schema, as a regular set, by `outlines-core`.

Its translation to a regular expression leaves some keywords out without a word. What it does not
apply, or applies so that invalid JSON would pass, is refused here.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import equinox as eqx

from .byte_dfa import byte_dfa, outlines
from .regex import Textual

_ANNOTATIONS = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$schema", "$id", "$comment", "$defs", "definitions",
}  # fmt: skip
# The sets of keywords that are applied together, by type.
_APPLIED: dict[str, list[set[str]]] = {
    "string": [{"minLength", "maxLength"}, {"pattern"}, {"format"}],
    "integer": [set()],
    "number": [set()],
    "boolean": [set()],
    "null": [set()],
    "array": [{"items", "minItems", "maxItems"}, {"prefixItems"}],
    "object": [{"properties", "required", "additionalProperties"}],
}
# In JSON schema these classes are of ASCII, in Rust's regex of Unicode.
_ASCII = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"}
_FORMATS = {"date", "date-time", "uuid"}


class JsonSchema(Textual):
    r"""The JSON texts of a schema: weight 1, all others 0.

    Every text allowed is valid; not every valid one is allowed: keys come in the schema's order,
    other keys than its `properties` do not come (with or without `additionalProperties`), strings
    have no `\u` escapes, exponents have a sign, and a `$ref` to itself goes `depth` deep. `oneOf`
    counts as `anyOf`; a `pattern` is of the whole string. A grammar (llguidance) knows more of JSON
    schema, at the price of a host call a token.

    Args:
        schema: the schema as a mapping or JSON text, or a class with `model_json_schema`
            (pydantic).
        whitespace: regular expression of what may stand between the parts of the text: at most one
            space by default, "" for none, so that a value has fewer spellings.
        depth: how many levels of recursion.

    Raises:
        ValueError: for a schema that is no JSON, or that has a keyword that would not be applied.
    """

    pattern: str = eqx.field(static=True)

    def __init__(self, schema: Any, whitespace: str = "[ ]?", depth: int = 3):
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except json.JSONDecodeError as error:
                raise ValueError(f"the schema is no JSON text: {error}") from error
        _check(schema, "#")
        try:
            build = outlines().json_schema.build_regex_from_schema
            pattern = build(json.dumps(schema), whitespace, depth)
        except (ValueError, TypeError) as error:
            raise ValueError(f"this JSON schema cannot be made a regular one: {error}") from error
        self.pattern = re.sub(r"\\.", lambda found: _ASCII.get(found[0], found[0]), pattern)

    @property
    def regex(self) -> str:
        """The pattern of the JSON texts."""
        return self.pattern


def _check(node: Any, where: str) -> None:
    """Raise ValueError for what would not be applied."""
    if not isinstance(node, Mapping):
        raise _unsupported(where, f"{node!r} in place of a schema")
    words = set(node) - _ANNOTATIONS
    for name in ("$defs", "definitions"):
        _check_all(node.get(name, {}), f"{where}/{name}")
    alone = next(
        (w for w in ("$ref", "anyOf", "oneOf", "allOf", "enum", "const") if w in words), ""
    )
    if alone:
        rest = words - {alone} - ({"type"} if alone in ("enum", "const") else set())
        if rest:
            raise _unsupported(where, f"{sorted(rest)} beside {alone!r}")
        if alone in ("anyOf", "oneOf", "allOf"):
            if len(node[alone]) > 1 and alone == "allOf":
                raise _unsupported(where, "'allOf' of several schemas")
            _check_all(dict(enumerate(node[alone])), f"{where}/{alone}")
        if alone == "enum" and not node["enum"]:
            raise ValueError(f"the schema allows nothing: 'enum' at {where} is empty")
        return
    kinds = node.get("type", "object" if "properties" in words else None)
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind is not None and kind not in _APPLIED:
            raise ValueError(f"the schema is invalid: {where} has type {kind!r}")
    known = [_APPLIED[k] for k in (kinds if isinstance(kinds, list) else [kinds]) if k is not None]
    words -= {"type"}
    for choice in known:
        mine = words & set().union(*choice)
        if not any(mine <= together for together in choice):
            raise _unsupported(where, f"{sorted(mine)} together")
    unknown = words - set().union(*(together for choice in known for together in choice))
    if unknown:
        raise _unsupported(where, f"{sorted(unknown)}")
    _check_parts(node, where)


def _check_parts(node: Mapping, where: str) -> None:
    missing = set(node.get("required", ())) - set(node.get("properties", ()))
    if missing:
        raise _unsupported(where, f"required keys that are no properties: {sorted(missing)}")
    if node.get("format", "date") not in _FORMATS:
        raise _unsupported(where, f"the format {node['format']!r} (known: {sorted(_FORMATS)})")
    if "pattern" in node:
        inside = byte_dfa(node["pattern"]).table[:, [*range(32), ord('"'), ord("\\")]]
        if inside.any():
            raise _unsupported(
                where,
                f"the pattern {node['pattern']!r}, which allows quotes, backslashes or control "
                r'characters (write [^"\\\x00-\x1F] for "any character")',
            )
    _check_all(node.get("properties", {}), f"{where}/properties")
    _check_all(dict(enumerate(node.get("prefixItems", ()))), f"{where}/prefixItems")
    for name in ("items", "additionalProperties"):
        if name in node and not isinstance(node[name], bool):
            _check(node[name], f"{where}/{name}")


def _check_all(nodes: Mapping, where: str) -> None:
    for name, node in nodes.items():
        _check(node, f"{where}/{name}")


def _unsupported(where: str, what: str) -> ValueError:
    return ValueError(
        f"the schema has at {where} {what}: that would not be applied here. Leave it out and check "
        "the text afterwards, or constrain by a grammar (llguidance), which knows JSON schema in "
        "full"
    )
