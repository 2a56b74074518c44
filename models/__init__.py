"""Models: exact finite and Gaussian ones, language models, constraints and rewards, networks."""

from typing import TYPE_CHECKING

from . import constraints as constraints
from . import finite as finite
from . import language as language
from . import learned as learned
from . import rewards as rewards
from .constraints import Automaton as Automaton
from .constraints import Check as Check
from .constraints import Geometric as Geometric
from .constraints import Grammar as Grammar
from .constraints import GrammarError as GrammarError
from .constraints import JsonSchema as JsonSchema
from .constraints import Recursive as Recursive
from .constraints import Regex as Regex
from .constraints import RejectionToken as RejectionToken
from .constraints import Weighted as Weighted
from .constraints import lipogram as lipogram
from .constraints import rejection as rejection
from .language import LINE as LINE
from .language import PARAGRAPH as PARAGRAPH
from .language import SENTENCE as SENTENCE
from .language import BytePotential as BytePotential
from .language import Bytes as Bytes
from .language import Changed as Changed
from .language import Characters as Characters
from .language import Conversation as Conversation
from .language import Count as Count
from .language import ForcedEnd as ForcedEnd
from .language import ForcedWait as ForcedWait
from .language import Free as Free
from .language import Generation as Generation
from .language import Guess as Guess
from .language import HostStepReward as HostStepReward
from .language import HostStepValue as HostStepValue
from .language import JSONBytes as JSONBytes
from .language import LanguageModel as LanguageModel
from .language import LanguageModelPotential as LanguageModelPotential
from .language import Latent as Latent
from .language import Passage as Passage
from .language import PerToken as PerToken
from .language import Prefix as Prefix
from .language import Prompts as Prompts
from .language import Reading as Reading
from .language import Safety as Safety
from .language import Shown as Shown
from .language import Step as Step
from .language import StepPotential as StepPotential
from .language import StepReading as StepReading
from .language import StepReward as StepReward
from .language import Steps as Steps
from .language import StepValue as StepValue
from .language import Stepwise as Stepwise
from .language import StopStrings as StopStrings
from .language import SyllableLines as SyllableLines
from .language import Temperatures as Temperatures
from .language import Template as Template
from .language import Text as Text
from .language import Unit as Unit
from .language import Vocabulary as Vocabulary
from .language import Without as Without
from .language import Words as Words
from .language import chat_pieces as chat_pieces
from .language import conversation as conversation
from .language import ended as ended
from .language import from_callable as from_callable
from .language import from_nnx as from_nnx
from .language import genealogy as genealogy
from .language import generation as generation
from .language import haiku as haiku
from .language import hotter as hotter
from .language import infilling as infilling
from .language import intersection as intersection
from .language import latent as latent
from .language import load as load
from .language import next_weight as next_weight
from .language import passage as passage
from .language import per_token as per_token
from .language import personas as personas
from .language import prompt_posterior as prompt_posterior
from .language import reprompt as reprompt
from .language import show as show
from .language import step_texts as step_texts
from .language import stepwise as stepwise
from .language import stream as stream
from .language import syllables as syllables
from .language import template as template
from .language import texts as texts
from .language import token_table as token_table
from .language import told_by as told_by
from .language import with_prefix as with_prefix
from .learned import tilted as tilted
from .rewards import DeviceReward as DeviceReward
from .rewards import Judge as Judge
from .rewards import Perplexity as Perplexity
from .rewards import PythonProgram as PythonProgram
from .rewards import Reward as Reward
from .rewards import RewardHead as RewardHead
from .rewards import Score as Score
from .rewards import SelfCertainty as SelfCertainty
from .rewards import StepProduct as StepProduct
from .rewards import Telescoping as Telescoping
from .rewards import TokenReward as TokenReward
from .rewards import Verifier as Verifier
from .rewards import code_block as code_block
from .rewards import hidden_states as hidden_states
from .rewards import learn_reward_head as learn_reward_head

if TYPE_CHECKING:
    from . import amortized as amortized


def __getattr__(name):
    """`models.amortized`, when first asked for: Flax takes seconds to import."""
    if name == "amortized":
        from importlib import import_module

        return import_module(".amortized", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
