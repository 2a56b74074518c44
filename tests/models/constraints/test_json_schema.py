"""JSON schemas: what is allowed is valid, and what would not be applied is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from feynkac.models.constraints import JsonSchema, Weighted
from feynkac.models.language import Vocabulary

END, ROOM = 256, 120
BYTES = Vocabulary((*(bytes([b]) for b in range(256)), b""), END)
PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer"},
        "role": {"enum": ["user", "admin", None]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 2},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{1,3}$"}},
}


@jax.jit
def drawn(weighted, log_weights, keys):
    """Texts of independent bytes, given that they are allowed."""

    def one(key):
        def step(state, inputs):
            key, remaining = inputs
            token = jax.random.categorical(key, log_weights + weighted.log_next(state, remaining))
            return weighted.advance(state, token.astype(jnp.int32)), token

        rest = jnp.arange(ROOM, 0, -1, dtype=jnp.int32)
        return jax.lax.scan(step, weighted.start(ROOM), (jax.random.split(key, ROOM), rest))[1]

    return jax.vmap(one)(keys)


def test_texts_drawn_from_a_schema_are_valid():
    schema = JsonSchema(PERSON)
    automaton = schema.over(BYTES)
    # So that neither the absence of a key nor a long number is the rule.
    log_weights = jnp.zeros(257).at[48:58].set(-np.log(10.0))
    weighted = Weighted.of(automaton, log_weights, ROOM)
    rows = np.asarray(drawn(weighted, log_weights, jax.random.split(jax.random.key(0), 300)))
    seen, spaces = set(), 0
    for row in rows:
        stop = int(np.flatnonzero(row == END)[0])
        text = bytes(row[:stop].tolist()).decode()
        spaces += text.count(" ")
        value = json.loads(text)
        seen |= set(value)
        assert {"name", "tags"} <= set(value) <= set(PERSON["properties"])
        assert isinstance(value["name"], str) and 1 <= len(value["name"]) <= 6
        assert isinstance(value.get("age", 0), int)
        assert value.get("role") in PERSON["properties"]["role"]["enum"]
        assert 1 <= len(value["tags"]) <= 2
        assert all(re.fullmatch("[a-z]{1,3}", tag) for tag in value["tags"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", value.get("born", "2000-01-01"))
    assert seen == set(PERSON["properties"]) and spaces > 300
    assert np.isfinite(float(weighted.log_prefix(weighted.start(ROOM), jnp.int32(ROOM))))


def accepted(automaton, text):
    state = 2
    classes, transitions = np.asarray(automaton.classes), np.asarray(automaton.transitions)
    for byte in text.encode():
        state = transitions[state, classes[byte]]
    return np.asarray(automaton.distance)[state] == 0


def test_whitespace_is_as_free_as_told():
    free, tight = JsonSchema(PERSON).over(BYTES), JsonSchema(PERSON, whitespace="").over(BYTES)
    for text, in_free, in_tight in (
        ('{"name":"Ann","tags":["a"]}', True, True),
        ('{"name": "Ann", "tags": ["a"]}', True, False),
        ('{"name":  "Ann","tags":["a"]}', False, False),
        ('{"name":"Ann","age":007,"tags":["a"]}', False, False),
        ('{"name":"\\"","age":-7,"tags":["a","bcd"]}', True, True),
        ('{"tags":["a"],"name":"Ann"}', False, False),
    ):
        assert accepted(free, text) == in_free and accepted(tight, text) == in_tight


def test_schemas_come_as_text_mapping_or_class():
    class Model:
        @staticmethod
        def model_json_schema():
            return PERSON

    one, two, three = JsonSchema(PERSON), JsonSchema(json.dumps(PERSON)), JsonSchema(Model)
    assert one.regex == two.regex == three.regex


INTEGER = {"type": "integer"}
REFUSED = {
    "no JSON": ("{", "no JSON text"),
    "no schema": (True, "in place of a schema"),
    "a type that is none": ({"type": "int"}, "invalid"),
    "a bound": ({"type": "integer", "minimum": 3}, "minimum"),
    "within": ({"type": "object", "properties": {"a": {"not": INTEGER}}}, "#/properties/a"),
    "in definitions": ({"$ref": "#/$defs/x", "$defs": {"x": {"if": INTEGER}}}, "'if'"),
    "of items": ({"type": "array", "items": INTEGER, "uniqueItems": True}, "uniqueItems"),
    "together": ({"type": "string", "pattern": "a+", "maxLength": 2}, "together"),
    "beside": ({"anyOf": [INTEGER], "properties": {"a": INTEGER}}, "beside 'anyOf'"),
    "all of": ({"allOf": [INTEGER, {"type": "number"}]}, "allOf"),
    "a key not there": ({"type": "object", "properties": {}, "required": ["a"]}, "no properties"),
    "a format": ({"type": "string", "format": "email"}, "email"),
    "a quote": ({"type": "string", "pattern": ".*"}, "quotes"),
    "a number of keys": ({"type": "object", "maxProperties": 1}, "maxProperties"),
    "nothing": ({"enum": []}, "empty"),
    "no reference": ({"$ref": "#/$defs/x"}, "regular one"),
    "lengths": ({"type": "string", "minLength": 3, "maxLength": 2}, "maxLength"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_applied_is_refused(case):
    schema, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        JsonSchema(schema)


def test_values_of_all_kinds():
    kinds = {
        '{"type": ["integer", "null"]}': ("null", "1.5"),
        '{"const": "a\\"b"}': ('"a\\"b"', '"ab"'),
        '{"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "number"}]}': (
            "[true,1.5e+3]", "[true]"),
        '{"oneOf": [{"type": "integer"}, {"type": "string", "format": "uuid"}]}': ("12", "true"),
        '{"type": "object", "additionalProperties": {"type": "null"}}': (
            '{"x": null}', '{"x": ""}'),
        '{"type": "string", "pattern": "[a\\\\d]+\\\\w"}': ('"1ab"', '"\u0663b"'),
    }  # fmt: skip
    for schema, (good, bad) in kinds.items():
        automaton = JsonSchema(schema).over(BYTES)
        assert accepted(automaton, good) and not accepted(automaton, bad), schema
