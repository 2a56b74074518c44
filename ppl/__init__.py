"""The language: programs, state-space models, targets and their laws."""

import numpyro.distributions as dist

from . import laws as laws
from .algorithm import Algorithm as Algorithm
from .code import Code as Code
from .combinators import cond as cond
from .combinators import mask as mask
from .combinators import mix as mix
from .combinators import scan as scan
from .combinators import vmap as vmap
from .context import Context as Context
from .distributions import Token as Token
from .errors import ProgramError as ProgramError
from .estimated import EstimatedDistribution as EstimatedDistribution
from .experts import power as power
from .experts import product as product
from .from_numpyro import from_numpyro as from_numpyro
from .generative import GenerativeFunction as GenerativeFunction
from .generative import Outcome as Outcome
from .generative import Request as Request
from .hot import Hot as Hot
from .nested import marginal as marginal
from .nested import normalize as normalize
from .partial import Partial as Partial
from .potential import Potential as Potential
from .program import Program as Program
from .program import bind as bind
from .program import program as program
from .proposal import Proposal as Proposal
from .selection import Selection as Selection
from .selection import select as select
from .state_space import Keep as Keep
from .state_space import Reject as Reject
from .state_space import StateSpace as StateSpace
from .target import Target as Target
from .trace import Trace as Trace
from .twist import AbstractTwist as AbstractTwist
from .twist import Twist as Twist

__all__ = ["dist"]
