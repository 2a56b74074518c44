"""Constraints on texts, as potentials."""

from ..rewards.check import Check as Check
from .automaton import Automaton as Automaton
from .grammar import Grammar as Grammar
from .json_schema import JsonSchema as JsonSchema
from .parsers import GrammarError as GrammarError
from .regex import Regex as Regex
from .regex import lipogram as lipogram
from .rejecting import rejection as rejection
from .rejection_forms import Geometric as Geometric
from .rejection_forms import Recursive as Recursive
from .rejection_token import RejectionToken as RejectionToken
from .rejection_token import TextCheck as TextCheck
from .weighted import Weighted as Weighted
