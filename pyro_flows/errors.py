"""The errors of pyro_flows: each says who expected what, what came, and what to do."""


class FlowError(Exception):
    """Root of every error that pyro_flows raises on purpose."""


class ShapeError(FlowError, ValueError):
    """A tensor, a context or a distribution has the wrong shape."""


class DomainError(FlowError, ValueError):
    """An argument, a support or a dtype lies outside of what is possible."""


class NonFiniteError(FlowError, FloatingPointError):
    """A NaN or an infinity arose where a finite number was needed."""


class NotConvergedError(FlowError, RuntimeError):
    """An iteration ended before it reached its tolerance."""


class CheckpointError(FlowError, RuntimeError):
    """A saved state is damaged, or belongs to something else."""
