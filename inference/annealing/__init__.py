"""Annealing: how sharply the weights so far decide which particles are kept."""

from .adaptive import AdaptiveTempering as AdaptiveTempering
from .base import Annealing as Annealing
from .base import Weighted as Weighted
from .entropic import BaseRule as BaseRule
from .entropic import Entropic as Entropic
from .entropic import EntropyRule as EntropyRule
from .entropic import ESSRule as ESSRule
from .entropic import HeuristicEntropic as HeuristicEntropic
from .ramp import Ramp as Ramp
