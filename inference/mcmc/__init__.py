"""Markov kernels that leave a target invariant."""

from .kernel import Kernel as Kernel
from .kernel import Repeat as Repeat
from .metropolis_hastings import MH as MH
