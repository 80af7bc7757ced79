"""The process that ``bench_memory.py`` measures on the other side: eager torch.

Arguments: the case's name, a ``.npz`` with ``x``, ``y`` and the adapters' ``scaled_a/<module>``,
the path of the head, the batch size, the number of epochs. Prints the peak resident memory in KiB
after the imports, and after training.
"""

import sys

import numpy as np
import torch
from models import CASES, EagerPeer
from peak import peak_kib


def main() -> None:
    """Train as a script would."""
    name, data, head, batch_size, epochs = sys.argv[1:]
    torch.set_num_threads(1)
    imported = peak_kib()
    with np.load(data) as arrays:
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
        prefix = "scaled_a/"
        scaled_a = {
            key.removeprefix(prefix): torch.from_numpy(arrays[key])
            for key in arrays.files
            if key.startswith(prefix)
        }
    peer = EagerPeer(CASES[name].model(), scaled_a, head, learning_rate=0.01)
    for _ in range(int(epochs)):
        for rows in torch.randperm(len(x)).split(int(batch_size)):
            peer.step(x[rows], y[rows])
    print(imported, peak_kib())


if __name__ == "__main__":
    main()
