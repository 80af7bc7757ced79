"""What an app writes to learn on its device.

    python examples/embed_sdk.py BUNDLE PUBLISHER.pub.pem DATA.npz [HOST:PORT [CA.pem]]

DATA.npz holds arrays x and y. With an address the device also joins the federation there.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from rootlet import DeviceClient, ParticipationPolicy, TrainConfig
from rootlet_runtime import Bundle, load_public_key


def main(bundle_path, publisher, data, address=None, root_certificate=None):
    examples = np.load(data)
    bundle = Bundle.load(bundle_path, trusted_keys=[load_public_key(publisher)])
    policy = ParticipationPolicy(charging=False, battery_above=0.0)  # this is only a demonstration
    with (
        tempfile.TemporaryDirectory() as state_dir,  # an app gives a folder that stays
        DeviceClient(bundle, state_dir, policy=policy, train=TrainConfig(epochs=5)) as client,
    ):
        for x, label in zip(examples["x"], examples["y"], strict=True):
            client.observe(x, label)  # returns at once

        result = client.train_locally()
        print(f"trained {result.steps} steps in {result.seconds:.2f} s, loss {result.loss:.3f}")
        print(f"prediction for the first example: {client.predict(examples['x'][0]).round(3)}")

        if address is not None:
            client.join(address, root_certificate and Path(root_certificate))  # returns at once
            input("taking part in the background; press Enter to leave\n")
            client.leave()
            print(client.status)


if __name__ == "__main__":
    if not 4 <= len(sys.argv) <= 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
