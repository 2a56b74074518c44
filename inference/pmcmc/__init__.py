"""Particle MCMC: Markov chains made of particle filters."""

from .exchange import GrowingSMC2 as GrowingSMC2
from .exchange import Grown as Grown
from .ladder_evidence import SteppingStone as SteppingStone
from .ladder_evidence import Thermodynamic as Thermodynamic
from .ladder_evidence import stepping_stone as stepping_stone
from .ladder_evidence import thermodynamic as thermodynamic
from .parallel_tempering import Ladder as Ladder
from .parallel_tempering import ParallelTempering as ParallelTempering
from .parallel_tempering import Tempered as Tempered
from .parametric import Parametric as Parametric
from .particle_gibbs import ParticleGibbs as ParticleGibbs
from .pimh import PIMH as PIMH
from .pimh import Draws as Draws
from .pmmh import PMMH as PMMH
from .pmmh import ParameterDraws as ParameterDraws
from .smc2 import SMC2 as SMC2
from .smc2 import ParameterParticles as ParameterParticles
