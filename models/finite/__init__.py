"""Models whose answers are known exactly: the oracles that samplers are tested against."""

from .bayes_net import BayesNet as BayesNet
from .chain import FiniteChain as FiniteChain
from .changepoint import NormalRun as NormalRun
from .changepoint import RobustNormalRun as RobustNormalRun
from .changepoint import RunLengths as RunLengths
from .changepoint import run_lengths as run_lengths
from .decision import DecisionChain as DecisionChain
from .hmm import HiddenMarkovModel as HiddenMarkovModel
from .inverse_wishart import FewShot as FewShot
from .inverse_wishart import NormalInverseWishart as NormalInverseWishart
from .inverse_wishart import few_shot as few_shot
from .linear_gaussian import LinearGaussian as LinearGaussian
from .markov_language_model import MarkovLanguageModel as MarkovLanguageModel
from .markov_lm import MarkovLM as MarkovLM
from .semiring import LogSum as LogSum
from .semiring import Max as Max
from .semiring import Tempered as Tempered
