"""From a torch model to a signed bundle, and from the bundle to a trained adapter: the two sides.

python examples/compile_and_train.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from rootlet_runtime import Bundle, Trainer, generate_keypair


def server_side(path: Path) -> object:
    """Needs torch: trains a small base on digits 0 to 9 and compiles it. Returns the public key."""
    import torch

    from rootlet_server import CompileConfig, compile_bundle

    digits = load_digits()
    x = torch.from_numpy((digits.data / 16).astype(np.float32))[:800]
    y = torch.from_numpy(digits.target)[:800]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 10))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    private_key, public_key = generate_keypair()
    compile_bundle(
        model,
        calibration_x=x[:128],
        config=CompileConfig(licence="Apache-2.0", data_origin="scikit-learn digits"),
        name="digits",
        version=1,
        signing_key=private_key,
        out=path,
    )
    return public_key


def device_side(path: Path, public_key: object) -> tuple[float, float]:
    """Needs numpy and ONNX Runtime: adapts the base to mirrored digits. Returns before, after."""
    digits = load_digits()
    x = (digits.images[:, :, ::-1] / 16).astype(np.float32).reshape(-1, 64)
    y = digits.target
    with Bundle.load(path, trusted_keys=[public_key]) as bundle:
        trainer = Trainer(bundle)
        before = trainer.evaluate(x[1200:], y[1200:]).metric
        trainer.fit(
            x[800:1200],
            y[800:1200],
            epochs=10,
            batch_size=16,
            learning_rate=0.02,
            rng=np.random.default_rng(0),
        )
        return before, trainer.evaluate(x[1200:], y[1200:]).metric


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    path = folder / "digits-1.rootlet"
    public_key = server_side(path)
    before, after = device_side(path, public_key)
    print(f"accuracy on mirrored digits: {before:.1%} before, {after:.1%} after")


if __name__ == "__main__":
    main()
