"""Smoothing: the law of the past given all data, out of a filter's run."""

from .backward import Backward as Backward
from .backward import Exact as Exact
from .backward import Genealogy as Genealogy
from .backward import Smoothed as Smoothed
from .backward import backward as backward
from .failure import Failure as Failure
from .forward import Forward as Forward
from .forward import forward as forward
from .marginals import Marginals as Marginals
from .marginals import fixed_lag as fixed_lag
from .marginals import marginals as marginals
from .mcmc import MCMC as MCMC
from .paths import PathTree as PathTree
from .paths import StoredPaths as StoredPaths
from .paths import stored_paths as stored_paths
from .rejection import Rejection as Rejection
from .two_filter import two_filter as two_filter
