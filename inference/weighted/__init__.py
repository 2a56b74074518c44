"""Importance sampling beyond one proposal: mixtures, populations that adapt, control variates."""

from .adaptation import Adapt as Adapt
from .adaptation import Adaptation as Adaptation
from .adaptation import Locations as Locations
from .control_variates import Expectations as Expectations
from .control_variates import MultipleExpectations as MultipleExpectations
from .gaussian import Gaussian as Gaussian
from .multiple import MultipleImportance as MultipleImportance
from .population import PopulationMonteCarlo as PopulationMonteCarlo
from .recycling import AdaptiveMultipleImportance as AdaptiveMultipleImportance
from .recycling import Recycled as Recycled
from .scoring import Stacked as Stacked
from .scoring import log_densities as log_densities
from .sobol import SobolIndices as SobolIndices
from .sobol import sobol_indices as sobol_indices
