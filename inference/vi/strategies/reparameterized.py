"""Gradients carried by the draw (Kingma and Welling 2014; Figurnov, Mohamed and Mnih 2018)."""

from .base import Strategy, is_reparameterized, type_name


class Reparameterized(Strategy):
    """The draw is a differentiable function of the parameters, implicitly so for gamma and others.

    The default of every distribution for which it is possible. The objective has to be
    differentiable in the draw, but for a set of measure zero, and continuous.
    """

    def refusal(self, d):
        """See `Strategy.refusal`."""
        if is_reparameterized(d):
            return None
        return f"draws of {type_name(d)} are not differentiable in its parameters"

    def value(self, key, d, value):
        """The draw, with its gradient."""
        return value
