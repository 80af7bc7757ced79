"""The process that ``bench_memory.py`` measures on one side: a bundle and the runtime.

Arguments: the bundle, a ``.npz`` with ``x`` and ``y``, the batch size, the number of epochs.
Prints the peak resident memory in KiB after the imports, and after training.
"""

import sys

import numpy as np
import onnxruntime  # noqa: F401 -- the engine imports it later; here it counts as an import
from peak import peak_kib

from rootlet_runtime import Bundle, Trainer


def main() -> None:
    """Train as an app would."""
    path, data, batch_size, epochs = sys.argv[1:]
    imported = peak_kib()
    with np.load(data) as arrays:
        x, y = arrays["x"], arrays["y"]
    trainer = Trainer(Bundle.load(path, trusted_keys=[], allow_unsigned=True))
    trainer.fit(
        x,
        y,
        epochs=int(epochs),
        batch_size=int(batch_size),
        learning_rate=0.01,
        rng=np.random.default_rng(0),
    )
    print(imported, peak_kib())


if __name__ == "__main__":
    main()
