"""Selection, for comparison: it returns a choice, not a posterior, and no log evidence."""

from .beam import DVTS as DVTS
from .beam import BeamSearch as BeamSearch
from .beam import beams_many as beams_many
from .best_of_n import BestOfN as BestOfN
from .choice import Choice as Choice
from .choice import Search as Search
from .compare import Bands as Bands
from .compare import accuracy_at as accuracy_at
from .compare import paired_bands as paired_bands
from .compare import rate_ratio as rate_ratio
from .compare import scaling_rate as scaling_rate
from .expansion import Enumerated as Enumerated
from .expansion import Expansion as Expansion
from .expansion import Sampled as Sampled
from .path import Beams as Beams
from .path import Path as Path
from .tally import Vote as Vote
from .tally import tally as tally
from .votes import MajorityVote as MajorityVote
from .votes import ProbabilityVote as ProbabilityVote
from .votes import WeightedBestOfN as WeightedBestOfN
