"""Constraints on texts, as potentials."""

from .automaton import Automaton as Automaton
from .check import Check as Check
from .grammar import Grammar as Grammar
from .json_schema import JsonSchema as JsonSchema
from .regex import Regex as Regex
from .weighted import Weighted as Weighted
