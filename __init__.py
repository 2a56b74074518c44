"""feynkac: probabilistic programming for language-model inference, in JAX.

Generation is a state-space model: the language model is the transition, rewards and constraints are
the likelihood, an answer is a posterior sample with an evidence estimate.
"""

from . import inference as inference
from . import models as models
from . import ppl as ppl

__version__ = "0.1.0"
