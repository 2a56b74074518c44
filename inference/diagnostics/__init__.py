"""Diagnostics: may these weights, chains and posteriors be trusted?"""

from .calibration import Calibration as Calibration
from .calibration import sbc as sbc
from .chains import ess as ess
from .chains import ess_tail as ess_tail
from .chains import mcse as mcse
from .chains import rhat as rhat
from .plots import plot_calibration as plot_calibration
from .plots import plot_history as plot_history
from .plots import plot_weights as plot_weights
from .psis import Khat as Khat
from .psis import khat as khat
from .psis import psis as psis
