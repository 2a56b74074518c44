"""Amortized posteriors: networks trained on a program's draws, checked against the truth."""

from .network import Network as Network
from .network import network as network
from .training import train as train
