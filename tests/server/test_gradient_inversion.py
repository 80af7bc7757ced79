"""What a gradient of one example tells of it: everything, by backprop as by feedback alignment.

The gradient of a trained half A of an adapter is an outer product with the layer's input, so its
main direction *is* the input. Clipping changes its length alone; noise is what hides it.
"""

import numpy as np
import pytest
import torch

from rootlet_runtime import Bundle
from rootlet_runtime.private_fit import noise_std, released
from rootlet_server.compiler import CompileConfig, LoraConfig, PrivacyConfig, compile_bundle

PIXELS, TRIES, CLIP = 784, 20, 1.0


def cosine(a, b):
    return abs(float(a @ b)) / (np.linalg.norm(a) * np.linalg.norm(b))


def gradients(tmp_path, rule, kind):
    """Clipped gradients of single examples by the graph that devices run, and the examples."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(PIXELS, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )
    x = np.random.default_rng(0).random((64, PIXELS), np.float32)
    path = tmp_path / "m.rootlet"
    compile_bundle(
        model, calibration_x=torch.from_numpy(x), name="m", version=1, signing_key=None, out=path,
        config=CompileConfig(
            rule=rule, adapter=LoraConfig(kind=kind, rank=4), base_dtype="float32",
            privacy=PrivacyConfig(),
        ),
    )  # fmt: skip
    from rootlet_runtime.batches import gather
    from rootlet_runtime.engines import open_engine
    from rootlet_runtime.state import TrainState

    with Bundle.load(path, trusted_keys=[], allow_unsigned=True) as bundle:
        engine = open_engine("onnxruntime", bundle, 1)
        adapter = {
            name: value + 0.1 * np.random.default_rng(1).standard_normal(value.shape, np.float32)
            for name, value in bundle.initial_adapter().items()
        }
        state = engine.state()
        engine.load_state(TrainState(adapter=adapter, optimizer=state.optimizer, steps=0))
        y = np.zeros(len(x), np.int64)
        found = []
        for row in range(TRIES):
            batch = gather(x, y, np.array([row]), 1)
            outputs = engine.gradients(batch, CLIP)
            grads = {name: np.array(outputs[f"grads/{name}"]) for name in adapter}
            found.append((grads, x[row]))
    return found


def attacked(grads):
    """The main direction of the gradient whose rows are as long as the input."""
    (matrix,) = [value for value in grads.values() if value.ndim == 2 and value.shape[1] == PIXELS]
    return np.linalg.svd(matrix, full_matrices=False)[2][0]


@pytest.mark.parametrize("rule", ["backprop", "dfa"])
def test_one_example_is_read_off_its_gradient_and_noise_alone_hides_it(tmp_path, rule):
    found = gradients(tmp_path, rule, "lora")
    plain = [cosine(attacked(grads), example) for grads, example in found]
    assert min(plain) > 0.999  # clipped already: clipping hides nothing
    size = sum(value.size for value in found[0][0].values())
    noisy = []
    for grads, example in found:
        sums = {name: value.astype(np.float64) for name, value in grads.items()}
        seen = attacked(released(sums, noise_std(1.0, CLIP, size)))
        noisy.append(cosine(seen - seen.mean(), example - example.mean()))
    assert np.mean(noisy) <= 0.1
