"""Gradient strategies: how the gradient of an expectation passes through a site."""

from .base import Report as Report
from .base import Strategy as Strategy
from .enumerated import Enumerate as Enumerate
from .enumerated import TopK as TopK
from .measure_valued import MeasureValued as MeasureValued
from .reparameterized import Reparameterized as Reparameterized
from .score import Score as Score
from .straight_through import GumbelStraightThrough as GumbelStraightThrough
from .straight_through import StraightThrough as StraightThrough
