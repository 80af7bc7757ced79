"""The process whose memory ``measure.py`` reads: a bundle, the runtime, and nothing else.

Arguments: the bundle, a ``.npz`` with ``x`` and ``y``, the batch size. Prints the peak resident
memory in KiB.
"""

import sys
from pathlib import Path

import numpy as np

from rootlet_runtime import Bundle, Trainer


def main() -> None:
    """Train once over the examples, as an app would."""
    path, data, batch_size = sys.argv[1:]
    with np.load(data) as arrays:
        x, y = arrays["x"], arrays["y"]
    trainer = Trainer(Bundle.load(path, trusted_keys=[], allow_unsigned=True))
    rng = np.random.default_rng(0)
    trainer.fit(x, y, epochs=1, batch_size=int(batch_size), learning_rate=1e-4, rng=rng)
    status = Path("/proc/self/status").read_text()
    print(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
