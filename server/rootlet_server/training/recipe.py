"""A run as a TOML file: where the model and the examples come from, and the configuration.

```toml
out = "runs/digits"
tensorboard = true
report = true                               # the default: report.png, report.html

[model]
factory = "my_package.models:small_cnn"     # called with [model.arguments]
arguments = { width = 32 }

[data]
train = "train.npz"                         # arrays x and y; paths are relative to this file
held_out = "held_out.npz"

[training]
epochs = 20
batch_size = 128

[optimizer]
name = "adamw"
learning_rate = 3e-3
```

Further tables: ``[schedule]``, ``[engine]``, ``[privacy]``. Every key is a field of that name's
dataclass in ``config.py``. The factory is code of whoever runs the command, imported as Python's
``-m`` would: a TOML file is as trusted as a script.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rootlet.data import load_npz
from rootlet_server.training.config import (
    CentralPrivacy,
    EngineConfig,
    FullTrainingConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from rootlet_server.training.data import Arrays, TrainingData
from rootlet_server.training.errors import FullTrainingConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLES: dict[str, type] = {
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "engine": EngineConfig,
    "privacy": CentralPrivacy,
}
TOP = ("out", "tensorboard", "report", "model", "data", "training", *TABLES)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a file asks for.

    Attributes:
        out: the run's folder.
        tensorboard: whether to keep a TensorBoard log there.
        report: whether to write ``report.png`` and ``report.html`` there at the end.
        factory: ``module:function`` that makes the model.
        arguments: of the factory.
        train, held_out: ``.npz`` files.
        config: all of the training.
    """

    out: Path
    tensorboard: bool
    report: bool
    factory: str
    arguments: Mapping[str, Any]
    train: Path
    held_out: Path | None
    config: FullTrainingConfig

    def model(self) -> nn.Module:
        """Make the model.

        Raises:
            FullTrainingConfigError: the factory is not there, or makes no module.
        """
        module, _, name = self.factory.partition(":")
        try:
            factory: Any = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise FullTrainingConfigError(
                f"model.factory={self.factory!r}: {error}. Write 'package.module:function', of a "
                "module that Python can import from here."
            ) from error
        try:
            made = factory(**self.arguments)
        except TypeError as error:
            raise FullTrainingConfigError(f"model.arguments: {error}.") from error
        if not isinstance(made, nn.Module):
            raise FullTrainingConfigError(
                f"model.factory={self.factory!r} made a {type(made).__name__}; return a "
                "torch.nn.Module."
            )
        return made

    def data(self) -> TrainingData:
        """Read the examples."""
        held_out = None if self.held_out is None else Arrays.of(*load_npz(self.held_out))
        return TrainingData(train=Arrays.of(*load_npz(self.train)), held_out=held_out)


def read_recipe(path: Path) -> Recipe:
    """Read and check a file; nothing runs.

    Raises:
        FullTrainingConfigError: not TOML, or an unknown, missing or impossible value.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FullTrainingConfigError(f"{path} is not TOML: {error}.") from error
    _known(raw, TOP, "")
    for table in ("model", "data", "training", *TABLES):
        if not isinstance(raw.get(table, {}), dict):
            raise FullTrainingConfigError(f"{table} must be a table: [{table}].")
    model, data = (raw.get(name, {}) for name in ("model", "data"))
    _known(model, ("factory", "arguments"), "model.")
    _known(data, ("train", "held_out"), "data.")
    for value, key, example in (
        (raw.get("out"), "out", "'runs/first'"),
        (model.get("factory"), "model.factory", "'my_package.models:small_cnn'"),
        (data.get("train"), "data.train", "'train.npz'"),
    ):
        if not isinstance(value, str):
            raise FullTrainingConfigError(f"{key}={value!r} must be a text such as {example}.")
    base = path.resolve().parent
    held_out = data.get("held_out")
    return Recipe(
        out=base / raw["out"],
        tensorboard=bool(raw.get("tensorboard", False)),
        report=bool(raw.get("report", True)),
        factory=model["factory"],
        arguments=model.get("arguments", {}),
        train=base / data["train"],
        held_out=None if held_out is None else base / held_out,
        config=make_config(raw),
    )


def make_config(raw: Mapping[str, Any]) -> FullTrainingConfig:
    """The configuration of ``[training]`` and the tables beside it."""
    settings = dict(raw.get("training", {}))
    own = [f.name for f in fields(FullTrainingConfig) if f.name not in TABLES]
    _known(settings, own, "training.")
    for name, kind in TABLES.items():
        if name in raw:
            table = dict(raw[name])
            _known(table, [f.name for f in fields(kind)], f"{name}.")
            if "blocks" in table:
                table["blocks"] = tuple(table["blocks"])
            settings[name] = _made(kind, table, name)
    made: FullTrainingConfig = _made(FullTrainingConfig, settings, "training")
    return made


def _made(kind: Any, settings: Mapping[str, Any], table: str) -> Any:
    try:
        return kind(**settings)
    except TypeError as error:
        raise FullTrainingConfigError(f"[{table}]: {error}.") from error


def _known(found: Mapping[str, Any], allowed: Sequence[str], prefix: str) -> None:
    for key in found:
        if key not in allowed:
            raise FullTrainingConfigError(
                f"{prefix}{key} is not a key; there are {', '.join(sorted(allowed))}."
            )
