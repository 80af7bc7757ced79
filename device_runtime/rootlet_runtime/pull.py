"""What moves the adapter after each step of a fit, outside the graph."""

from typing import Protocol

from rootlet_runtime.tensors import Arrays


class Pull(Protocol):
    """Elastic weights (`rootlet_runtime.ewc`) or control variates (SCAFFOLD)."""

    def pulled(self, adapter: Arrays, learning_rate: float) -> Arrays:
        """The adapter after it, for a step that was taken at this rate."""

    def digest(self) -> str:
        """Tells whether a resumed fit has the same."""
