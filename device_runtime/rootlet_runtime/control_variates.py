"""SCAFFOLD's correction of a device's drift (Karimireddy et al. 2020, algorithm 1).

Plain SGD on a device steps by ``g - c_i + c``, with c_i what its own gradients were in its last
round and c the mean of that over all devices. The graph has taken ``w' = w - rate g``; what is
missing is taken outside it, after each step:

    w = w' - rate (c - c_i)

After K steps at the rates r_t the device's new estimate is (option II)

    c_i+ = c_i - c + (w_received - w_trained) / sum_t r_t
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from rootlet_runtime.tensors import Arrays


@dataclass(kw_only=True)
class ControlVariates:
    """One round's correction.

    Attributes:
        own: c_i by name.
        mean: c by name.
        rates: The sum of the rates of the steps taken so far.
    """

    own: Arrays
    mean: Arrays
    rates: float = field(default=0.0)

    def pulled(self, adapter: Arrays, learning_rate: float) -> Arrays:
        """The adapter after the correction of one step."""
        self.rates += learning_rate
        rate = np.float32(learning_rate)
        return {
            name: value - rate * (self.mean[name] - self.own[name])
            for name, value in adapter.items()
        }

    def digest(self) -> str:
        """SHA-256 (hex) of both: a resumed ``fit`` must have the same."""
        digest = hashlib.sha256()
        for arrays in (self.own, self.mean):
            for name, array in sorted(arrays.items()):
                digest.update(f"|{name}{array.shape}|".encode() + array.tobytes())
        return digest.hexdigest()

    def next_own(self, received: Arrays, trained: Arrays) -> Arrays:
        """c_i+, after all steps of a round."""
        rates = np.float32(self.rates)
        return {
            name: self.own[name] - self.mean[name] + (received[name] - value) / rates
            for name, value in trained.items()
        }
