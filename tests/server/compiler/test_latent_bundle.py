"""A bundle that trains on latents: the same adapter as one that trains on the inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rootlet_runtime import Bundle, Trainer, signing
from rootlet_runtime.errors import DataError
from rootlet_runtime.replay import Replay, ReplayBuffer, ReplaySettings
from rootlet_runtime.schedule import CONSTANT
from rootlet_server.compiler import CompileConfig, CompileError, LoraConfig, compile_bundle
from rootlet_server.compiler.config import PrivacyConfig

KEY, _ = signing.generate_keypair()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 24),
        nn.ReLU(),
        nn.Linear(24, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


def examples(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1, 8, 8)).astype(np.float32)
    return x, x[:, 0, 0, :4].argmax(1)


def compiled(folder: Path, *, latent: bool, base_dtype: str = "float32", **options) -> Bundle:
    path = folder / f"{latent}-{base_dtype}.rootlet"
    compile_bundle(
        model(),
        calibration_x=examples(64)[0],
        config=CompileConfig(
            adapter=LoraConfig(rank=8, target_modules=("5",)),
            base_dtype=base_dtype,
            latent=latent,
            distillation=True,
            privacy=PrivacyConfig(),
            max_batch=32,
            max_gradient_norm=None,  # a test reads gradients off single steps
            **options,
        ),
        name="latent",
        version=1,
        signing_key=KEY,
        out=path,
    )
    return Bundle.load(path, trusted_keys=[KEY.public_key()])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Bundle]:
    folder = tmp_path_factory.mktemp("latent")
    return {latent: compiled(folder, latent=latent) for latent in (False, True)}


def fit(bundle: Bundle, **options) -> Trainer:
    trainer = Trainer(bundle)
    settings = {"epochs": 3, "batch_size": 8, "learning_rate": 0.3, **options}
    trainer.fit(*examples(50, seed=1), rng=np.random.default_rng(0), **settings)
    return trainer


def assert_equal(one: Trainer, two: Trainer) -> None:
    for name, value in one.adapter.items():
        np.testing.assert_allclose(value, two.adapter[name], rtol=1e-4, atol=1e-6)


def test_what_the_graphs_take_is_declared(pair: dict[bool, Bundle]) -> None:
    manifest = pair[True].manifest
    assert manifest.latent is not None
    assert manifest.latent.shape == (None, 24)
    assert manifest.inputs_of("train")["x"].shape == (None, 24)
    assert manifest.inputs_of("predict")["x"].shape == (None, 1, 8, 8)
    assert pair[False].manifest.latent is None
    assert len(pair[True].entry("train.onnx")) < len(pair[False].entry("train.onnx"))


def test_training_on_latents_is_training_on_inputs(pair: dict[bool, Bundle]) -> None:
    held_out = examples(20, seed=9)
    trained = {latent: fit(bundle, held_out=held_out) for latent, bundle in pair.items()}
    assert_equal(trained[False], trained[True])
    x, y = examples(40, seed=2)
    found = [trained[latent].evaluate(x, y) for latent in (False, True)]
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-4)
    np.testing.assert_allclose(
        trained[False].predict(x), trained[True].predict(x), rtol=1e-3, atol=1e-5
    )
    start = Trainer(pair[True]).adapter
    moved = max(np.abs(value - start[name]).max() for name, value in trained[True].adapter.items())
    assert moved > 0.01


def test_distillation_and_fisher_are_the_same_on_both(pair: dict[bool, Bundle]) -> None:
    distilled = {latent: fit(bundle, distillation=0.5) for latent, bundle in pair.items()}
    assert_equal(distilled[False], distilled[True])
    x, y = examples(12, seed=3)
    fishers = [distilled[latent].fisher(x, np.random.default_rng(0), y) for latent in (False, True)]
    for name, value in fishers[0].items():
        np.testing.assert_allclose(value, fishers[1][name], rtol=1e-3, atol=1e-8)


def test_a_teacher_holds_the_outputs_where_they_were(pair: dict[bool, Bundle]) -> None:
    """With a weight next to one, training on wrong labels moves the outputs little."""
    x, y = examples(50, seed=1)
    first = fit(pair[True], epochs=8)
    before = first.predict(x)
    moved = {}
    for weight in (0.0, 0.9):
        trainer = Trainer(pair[True])
        trainer.load_adapter(first.adapter)
        trainer.fit(
            x,
            (y + 1) % 4,
            epochs=4,
            batch_size=8,
            learning_rate=0.3,
            rng=np.random.default_rng(0),
            distillation=weight,
            guard=None,
        )
        moved[weight] = float(np.abs(trainer.predict(x) - before).mean())
    assert moved[0.9] < 0.4 * moved[0.0]


def test_the_fisher_is_the_mean_square_of_single_steps(pair: dict[bool, Bundle]) -> None:
    """SGD at rate 1 on one example moves the adapter by its gradient."""
    trainer = fit(pair[False])
    x, y = examples(6, seed=4)
    squares = {name: np.zeros_like(value) for name, value in trainer.adapter.items()}
    for row in range(6):
        stepped = Trainer(pair[False])
        stepped.load_adapter(trainer.adapter)
        stepped.fit(
            x[row : row + 1],
            y[row : row + 1],
            epochs=1,
            batch_size=1,
            learning_rate=1.0,
            rng=np.random.default_rng(0),
            guard=None,
            schedule=CONSTANT,
        )
        for name, value in trainer.adapter.items():
            squares[name] += np.square(value - stepped.adapter[name]) / 6
    found = trainer.fisher(x, np.random.default_rng(0), y)
    for name, value in squares.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-2, atol=1e-7)
    drawn = trainer.fisher(x, np.random.default_rng(0))
    assert drawn.keys() == found.keys()
    assert all((value >= 0).all() for value in drawn.values())


def test_a_buffer_holds_latents_and_eight_bits_of_them_cost_little(pair) -> None:
    adapters = {}
    for storage in ("exact", "uint8"):
        trainer = Trainer(pair[True])
        buffer = ReplayBuffer(
            trainer.bundle.manifest, ReplaySettings(quota_bytes=20_000, storage=storage)
        )
        trainer.remember(buffer, *examples(30, seed=6), np.random.default_rng(0))
        assert buffer.examples()[0].shape == (30, 24)
        trainer.fit(
            *examples(50, seed=1),
            epochs=3,
            batch_size=16,
            learning_rate=0.3,
            rng=np.random.default_rng(0),
            replay=Replay(buffer=buffer),
            distillation=0.3,
        )
        adapters[storage] = np.concatenate([v.ravel() for v in trainer.adapter.values()])
    difference = np.linalg.norm(adapters["exact"] - adapters["uint8"])
    assert 0 < difference < 0.02 * np.linalg.norm(adapters["exact"])


def test_an_int8_prefix_gives_the_same_latents_in_any_batch(tmp_path: Path) -> None:
    with compiled(tmp_path, latent=True, base_dtype="int8", optimizer="adam") as bundle:
        trainer = fit(bundle, learning_rate=0.01)
        x, y = examples(33, seed=2)
        one = [trainer.evaluate(x, y, batch_size=size).loss for size in (1, 7, 32)]
        assert one == pytest.approx([one[0]] * 3, rel=1e-5)


def test_a_model_without_a_prefix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"no frozen layer lies before the first adapter, 3"):
        compile_bundle(
            model()[2:],
            calibration_x=np.random.default_rng(0).normal(size=(16, 4, 4, 4)).astype(np.float32),
            config=CompileConfig(latent=True, adapter=LoraConfig(rank=4)),
            name="latent",
            version=1,
            signing_key=KEY,
            out=tmp_path / "none.rootlet",
        )


def test_what_a_bundle_cannot_do_is_refused(mlp_bundle) -> None:
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as bundle:
        trainer = Trainer(bundle)
        with pytest.raises(DataError, match=r"CompileConfig\(privacy"):
            trainer.fisher(mlp_bundle.x, np.random.default_rng(0))
        arguments = {"epochs": 1, "batch_size": 8, "learning_rate": 0.1}
        for weight, message in ((0.5, r"CompileConfig\(distillation=True"), (1.0, "below 1")):
            with pytest.raises(DataError, match=message):
                trainer.fit(
                    mlp_bundle.x,
                    mlp_bundle.y,
                    rng=np.random.default_rng(0),
                    distillation=weight,
                    **arguments,
                )
