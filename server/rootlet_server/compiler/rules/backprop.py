"""Backpropagation through the frozen base: the control arm.

Its cost is a second pass through every frozen weight and every layer's tensors kept in memory.
"""

from __future__ import annotations

from rootlet_server.compiler.rules.exact import exact_credit, exact_gradients

backprop = exact_credit
backprop_gradients = exact_gradients

__all__ = ["backprop", "backprop_gradients"]
