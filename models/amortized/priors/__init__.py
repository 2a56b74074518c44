"""Programs that sample a data set, with sites `x` and `y`: priors for networks to learn."""

from .changepoint import Changepoints as Changepoints
from .coin import Bandit as Bandit
from .coin import coin as coin
from .gaussian_process import GaussianProcess as GaussianProcess
from .gaussian_process import HyperGaussianProcess as HyperGaussianProcess
from .gaussian_process import matern52 as matern52
from .gaussian_process import squared_exponential as squared_exponential
from .linear import LinearRegression as LinearRegression
from .neural_network import NeuralNetwork as NeuralNetwork
from .structural import StructuralModel as StructuralModel
