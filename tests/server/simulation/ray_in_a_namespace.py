"""Run by test_ray.py in a network namespace that has a loopback device and nothing else.

    unshare --map-root-user --net python ray_in_a_namespace.py BUNDLE OUT

Ray 2.55 listens on every address of its machine: here that is 127.0.0.1.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from rootlet_runtime.bundle import Bundle
from rootlet_server.simulation import LocalTraining, by_user, simulate

PORT = 10001  # the default, below those of workers


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    ray = Path(sys.executable).with_name("ray")
    subprocess.run(
        [ray, "start", "--head", "--node-ip-address", "127.0.0.1", "--num-cpus", "2",
         "--ray-client-server-port", str(PORT), "--include-dashboard", "false",
         "--object-store-memory", "100000000", "--disable-usage-stats"],
        check=True,
        # gRPC's handlers end some of the processes that Ray's client server forks
        env=os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0"},
    )  # fmt: skip
    try:
        rng = np.random.default_rng(3)
        x, y = rng.random((300, 64), np.float32), rng.integers(0, 10, 300)
        clients = by_user(x, y, rng.integers(0, 12, 300))
        training = LocalTraining(epochs=1, batch_size=8, learning_rate=0.02)
        options = {"rounds": 2, "seed": 9, "training": training, "chunk_size": 5}
        with Bundle.load(sys.argv[1], trusted_keys=[], allow_unsigned=True) as bundle:
            found = {
                f"{name}/{key}": value
                for name, workers in (("here", 1), ("ray", f"ray://127.0.0.1:{PORT}"))
                for key, value in simulate(
                    bundle, clients, workers=workers, **options
                ).adapter.items()
            }
        np.savez(sys.argv[2], **found)
    finally:
        subprocess.run([ray, "stop", "--force"], check=True)


if __name__ == "__main__":
    main()
