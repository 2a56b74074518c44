"""Amortized posteriors: networks trained on a program's draws, checked against the truth."""

from . import priors as priors
from .bars import Bars as Bars
from .bars import log_masses as log_masses
from .heads import Classes as Classes
from .heads import Labels as Labels
from .heads import Riemann as Riemann
from .network import Network as Network
from .network import network as network
from .pfn import PFN as PFN
from .pfn import Posterior as Posterior
from .training import train as train
