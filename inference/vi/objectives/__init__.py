"""Objectives of the literature."""

from .bounds import elbo as elbo
from .bounds import iwelbo as iwelbo
from .bounds import path_elbo as path_elbo
from .bounds import renyi as renyi
from .hierarchical import diwhvi as diwhvi
from .hierarchical import hvi as hvi
from .hierarchical import iwhvi as iwhvi
from .smc import biased_vsmc as biased_vsmc
from .smc import vsmc as vsmc
from .wake import forward_kl as forward_kl
from .wake import p_wake as p_wake
from .wake import q_wake as q_wake
from .wake import symmetric as symmetric
