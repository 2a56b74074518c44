"""Samplers for static targets: whole traces, moved by kernels along a path of targets."""

from .cloud import Measured as Measured
from .cloud import Tuning as Tuning
from .data_annealing import DataAnnealing as DataAnnealing
from .data_annealing import incremental_log_evidence as incremental_log_evidence
from .nested import NestedSampling as NestedSampling
from .persistent import Persistent as Persistent
from .predictive import Check as Check
from .predictive import Predictive as Predictive
from .predictive import predictive as predictive
from .predictive import predictive_check as predictive_check
from .stages import AdaptiveStages as AdaptiveStages
from .stages import Exponents as Exponents
from .stages import FixedStages as FixedStages
from .stages import Geometric as Geometric
from .stages import Linear as Linear
from .stages import Power as Power
from .stages import Stages as Stages
from .tempered import AnnealedImportance as AnnealedImportance
from .tempered import Tempered as Tempered
from .waste_free import WasteFree as WasteFree
