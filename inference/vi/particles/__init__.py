"""Particles that move together to a target: Stein variational, with or without a learning rate."""

from .directions import SVGD as SVGD
from .directions import Direction as Direction
from .directions import KSDDescent as KSDDescent
from .discrepancy import ksd as ksd
from .discrepancy import mmd as mmd
from .kernels import IMQ as IMQ
from .kernels import RBF as RBF
from .kernels import RadialKernel as RadialKernel
from .swarm import ParticleVI as ParticleVI
from .swarm import Swarm as Swarm
from .swarm import coin as coin
