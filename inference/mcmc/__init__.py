"""Markov kernels that leave a target invariant."""

from .block import BlockMH as BlockMH
from .compositions import Every as Every
from .compositions import Mixture as Mixture
from .compositions import Sequence as Sequence
from .gibbs import BlockGibbs as BlockGibbs
from .gibbs import Gibbs as Gibbs
from .gradient import HMC as HMC
from .gradient import MALA as MALA
from .gradient import NUTS as NUTS
from .gradient import Continuous as Continuous
from .gradient import RandomWalk as RandomWalk
from .involutive import Involutive as Involutive
from .kernel import Chain as Chain
from .kernel import Kernel as Kernel
from .kernel import Repeat as Repeat
from .kernel import Walk as Walk
from .metropolis import Metropolis as Metropolis
from .metropolis_hastings import MH as MH
from .multi_try import MultiTry as MultiTry
from .suffix import Suffix as Suffix
from .suffix import SuffixMH as SuffixMH
from .warmup import Warmed as Warmed
from .warmup import warmup as warmup
