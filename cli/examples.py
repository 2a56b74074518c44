"""The programs of `python -m feynkac gallery`: eight things that people ask of a language model.

Each is the program itself, a few lines, and beside it an independent rule in plain Python that
every text of positive weight has to obey.
"""

import itertools
import json
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import inference, models, ppl


class Example(NamedTuple):
    """A model of texts, what every text must obey, and what its filter needs."""

    story: ppl.StateSpace
    obeys: Callable[[str], bool]
    twist: Any = None
    proposal: Any = None


def chat(question: str) -> list[dict[str, str]]:
    """A question as chat messages."""
    return [{"role": "user", "content": question}]


def ask(lm: models.LanguageModel, question: str) -> models.Prefix:
    """A chat prompt, read."""
    return lm.prompt(chat(question))


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,9} [A-Z][a-z]{1,11}$"},
        "age": {"enum": list(range(18, 100))},
        "job": {"enum": ["baker", "doctor", "pilot", "teacher"]},
    },
    "required": ["name", "age", "job"],
    "additionalProperties": False,
}


def record(lm: models.LanguageModel) -> Example:
    """A JSON record that obeys a schema."""
    prompt = ask(lm, "Describe a person as a JSON record with name, age and job.")
    story = models.generation(lm, prompt, 40, temperature=0.8) * models.JsonSchema(PERSON)

    def obeys(text: str) -> bool:
        person = json.loads(text)
        jobs = PERSON["properties"]["job"]["enum"]
        name = re.fullmatch("[A-Z][a-z]{1,9} [A-Z][a-z]{1,11}", person["name"])
        return bool(name) and 18 <= person["age"] < 100 and person["job"] in jobs

    return Example(story, obeys)


def haiku(lm: models.LanguageModel) -> Example:
    """A haiku: lines of 5, 7 and 5 syllables."""
    prompt = ask(lm, "Write a haiku about the sea.")
    letters = models.Regex(r"([A-Z][A-Za-z', ]*[A-Za-z][,.]?\n){2}[A-Z][A-Za-z', ]*[A-Za-z][.!]?")
    story = models.generation(lm, prompt, 40, temperature=0.8) * letters * models.haiku()

    def syllables(word: str) -> int:
        groups = len(re.findall("[aeiouy]+", word))
        silent = re.search("[^aeiouy]e$", word) and not re.search("[^aeiouy]le$", word)
        return max(1, groups - bool(silent and groups > 1))

    def obeys(text: str) -> bool:
        lines = [re.findall("[a-z']+", line) for line in text.lower().split("\n")]
        return [sum(map(syllables, line)) for line in lines] == [5, 7, 5]

    return Example(story, obeys)


def lipogram(lm: models.LanguageModel) -> Example:
    """A sentence without the letter e."""
    prompt = ask(lm, "Write one sentence about a cat and a dog.")
    sentence = models.Regex(r"[A-Z][A-Za-z', ]{15,}\.")
    story = models.generation(lm, prompt, 32, temperature=0.8) * sentence * models.lipogram("e")
    return Example(story, lambda text: "e" not in text.lower() and text.endswith("."))


OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def value(text: str) -> int:
    """The value of numbers joined by + - *, with the usual precedence."""
    numbers, *rest = re.split(r" ([-+]) ", text)
    terms, signs = [numbers, *rest[1::2]], ["+", *rest[::2]]
    total = 0
    for sign, term in zip(signs, terms, strict=True):
        product = 1
        for number in term.split(" * "):
            product *= int(number)
        total = OPERATORS[sign](total, product)
    return total


def expressions(total: int) -> set[str]:
    """All expressions of two or three numbers up to 30 with this value."""
    numbers, out = range(1, 31), set()
    for count in (2, 3):
        for terms in itertools.product(numbers, repeat=count):
            for signs in itertools.product(OPERATORS, repeat=count - 1):
                parts = [
                    str(terms[0]),
                    *(f"{s} {n}" for s, n in zip(signs, terms[1:], strict=True)),
                ]
                text = " ".join(parts)
                if value(text) == total:
                    out.add(text)
    return out


def expression(lm: models.LanguageModel) -> Example:
    """An arithmetic expression whose value is 24: a rule in Python, asked at every token."""
    prompt = lm.prompt(
        "Ways to make 24:\n12 + 12\n30 - 6\n4 * 6\n2 * 10 + 4\n20 + 7 - 3\n40 - 16\n"
    )
    right = expressions(24)
    begun = {text[:i] for text in right for i in range(len(text) + 1)}
    form = models.Regex(r"[1-9]\d?( [-+*] [1-9]\d?){1,2}")
    on_the_way = models.Check(lambda text: text in begun, prefixes=True)
    arrived = models.Check(lambda text: text in right)
    story = models.generation(lm, prompt, 16) * form * on_the_way * arrived
    return Example(story, lambda text: eval(text) == 24, proposal=models.rejection(story))


def molecule(lm: models.LanguageModel) -> Example:
    """A molecule in SMILES notation that RDKit can read, of at most 20 characters."""
    from rdkit import Chem, RDLogger  # pyright: ignore[reportMissingImports]

    RDLogger.DisableLog("rdApp.*")  # pyright: ignore[reportAttributeAccessIssue]
    prompt = lm.prompt(
        "SMILES of small molecules:\nCCO\nCC(=O)O\nC1CCNCC1\nCN(C)C=O\nNCC(=O)O\nOC1CCCCC1\n"
        "CC(C)NCC(O)C\n"
    )

    def valid(text: str) -> bool:
        return Chem.MolFromSmiles(text) is not None

    def possible(text: str) -> bool:
        """Whether carbons that close what is open give a molecule in time: stricter than needed."""
        rings = [digit for digit in "123" if text.count(digit) % 2]
        rest = "C" * text.endswith(("(", "=")) + "".join("CC" + digit for digit in rings)
        closed = text + rest + ")" * (text.count("(") - text.count(")"))
        return len(closed) <= 20 and valid(closed)

    form = models.Regex(r"[CNO()=123]{5,20}")
    rules = models.Check(possible, prefixes=True) * models.Check(valid)
    story = models.generation(lm, prompt, 21) * form * rules
    return Example(story, valid, proposal=models.rejection(story))


def infilling(lm: models.LanguageModel) -> Example:
    """A sentence whose beginning, middle and end are given."""
    prompt = ask(lm, "Write one sentence about an old sailor.")
    gap = models.Free(8, 3)
    story = models.infilling(
        lm, prompt, "The old sailor", gap, " lighthouse", gap, " storm.", temperature=0.8
    )

    def obeys(text: str) -> bool:
        return bool(re.fullmatch(r"(?s)The old sailor.* lighthouse.* storm\.", text))

    return Example(story, obeys, models.next_weight(story))


def intersection(lm: models.LanguageModel) -> Example:
    """A sentence that two prompts make likely."""
    prompts = [
        ask(lm, "Write one short sentence about the ocean."),
        ask(lm, "Write one short sentence about being lonely."),
    ]
    sentence = models.Regex(r"[A-Z][a-zA-Z', ]*\.")
    story = models.intersection(lm, prompts, 24) * sentence
    return Example(story, lambda text: re.fullmatch(r"[A-Z][a-zA-Z', ]*\.", text) is not None)


SPEAKERS = {
    "a pirate": "You are a pirate. Say in one sentence what you did today.",
    "a scientist": "You are a scientist. Say in one sentence what you did today.",
    "a cook": "You are a cook. Say in one sentence what you did today.",
}


def persona(lm: models.LanguageModel) -> Example:
    """Who speaks, if the sentence is about gold or a ship: the posterior of the prompt."""
    prompts = [chat(question) for question in SPEAKERS.values()]
    about = models.Regex(r"[A-Z][^\n]* (gold|ship|treasure)[^\n]*[.!]")
    story = models.personas(lm, prompts, 32, temperature=0.8) * about

    def obeys(text: str) -> bool:
        return re.search(" (gold|ship|treasure)", text) is not None and "\n" not in text

    return Example(story, obeys)


EXAMPLES: dict[str, Callable[[models.LanguageModel], Example]] = {
    "json": record,
    "haiku": haiku,
    "lipogram": lipogram,
    "expression": expression,
    "molecule": molecule,
    "infilling": infilling,
    "intersection": intersection,
    "persona": persona,
}


def algorithm(example: Example, particles: int) -> inference.SMC:
    """The filter for an example."""
    return inference.SMC(particles, twist=example.twist, proposal=example.proposal)
