"""Exact inference for finite targets: `inference.exact.enumerate(target)`."""

from ..ppl.enumeration import ExactPosterior as ExactPosterior
from ..ppl.enumeration import enumerate as enumerate
