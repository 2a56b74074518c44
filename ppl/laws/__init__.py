"""Laws as checks that users run on their own programs, proposals, kernels and algorithms."""

from .generate import generate as generate
from .geweke import geweke as geweke
from .identity_proposal import identity_proposal as identity_proposal
from .interface import interface as interface
from .invariance import invariance as invariance
from .nested_density import nested_density as nested_density
from .proper_weighting import proper_weighting as proper_weighting
from .result import LawError as LawError
from .result import LawResult as LawResult
from .unbiased_evidence import unbiased_evidence as unbiased_evidence
