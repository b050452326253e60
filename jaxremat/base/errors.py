"""What goes wrong, by name. Every message carries the numbers and the remedy."""


class JaxrematError(Exception):
    """Base class of every error that jaxremat raises on purpose."""


class BudgetError(JaxrematError):
    """No schedule fits in the budget.

    Attributes:
      min_peak_bytes: the smallest peak that was really reached, in bytes.
      budget_bytes: the budget that was asked for, in bytes.
    """

    def __init__(self, message: str, *, min_peak_bytes: int, budget_bytes: int):
        super().__init__(message)
        self.min_peak_bytes = int(min_peak_bytes)
        self.budget_bytes = int(budget_bytes)


class PlanMismatchError(JaxrematError):
    """A plan meets a program, or arguments, that it was not made for."""


class EmissionError(JaxrematError):
    """A form of emission cannot express a plan."""


class GradientError(JaxrematError):
    """A planned gradient differs from the plain one."""


class GraphError(JaxrematError, ValueError):
    """A graph or chain is malformed: cyclic, out of range, or of unequal lengths."""


class ArgumentError(JaxrematError, ValueError):
    """An argument cannot be understood; the message names what is accepted."""


class TargetError(JaxrematError):
    """A target cannot be compiled for on this machine; the message names what to install."""
