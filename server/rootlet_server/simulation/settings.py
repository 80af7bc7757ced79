"""A simulation's TOML file: every section is one of the frozen configurations, by its own names."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.serverapp import strategy as flower

from rootlet.data import load_npz
from rootlet_server.errors import SimulationConfigError
from rootlet_server.simulation import partitions
from rootlet_server.simulation.availability import Diurnal, Recorded
from rootlet_server.simulation.batching import LocalTraining
from rootlet_server.simulation.controls import Scaffold
from rootlet_server.simulation.latency import Latency
from rootlet_server.simulation.pace import Pace
from rootlet_server.simulation.population import SampledPopulation
from rootlet_server.simulation.privacy import DevicePrivacy
from rootlet_server.simulation.uploads import SecureAggregation

if TYPE_CHECKING:
    from collections.abc import Callable

    from rootlet_server.simulation.population import Examples, Population

STRATEGIES = (
    "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedMedian", "FedTrimmedAvg", "FedYogi",
    "Krum", "MultiKrum", "Scaffold",
)  # fmt: skip
KINDS: dict[str, Any] = {
    "by_label": partitions.by_label,
    "by_user": partitions.by_user,
    "dirichlet": partitions.dirichlet,
    "iid": partitions.iid,
}
_PLAIN: dict[str, Any] = {
    "bundle": str, "trusted_keys": list, "rounds": int, "cohort_size": int, "seed": int,
    "workers": (int, str), "keep_optimizer": bool, "pre_aggregate": bool, "chunk_size": int,
    "vectorise": bool, "test": str,
}  # fmt: skip
_SECTIONS: dict[str, Any] = {
    "privacy": DevicePrivacy,
    "secure_aggregation": SecureAggregation,
    "latency": Latency,
    "pace": Pace,
}


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """What a file says.

    Attributes:
        bundle: path of the bundle.
        trusted_keys: paths of publishers' public keys.
        population: the clients.
        strategy: what aggregates, or None for the default.
        training: sections of ``LocalTraining`` that differ from the bundle's defaults.
        arguments: the other arguments of ``simulate``, by name.
    """

    bundle: Path
    trusted_keys: tuple[Path, ...]
    population: Population
    strategy: flower.Strategy | None
    training: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)


def load_settings(path: Path) -> SimulationSettings:
    """Read a file; paths in it are relative to it.

    Raises:
        SimulationConfigError: it is not TOML, a key is unknown or missing, or a value is outside
            its bounds.
        DataError: a data file cannot be used.
    """
    try:
        found = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SimulationConfigError(f"{path}: not TOML: {error}") from error
    base = path.parent
    population = _population(_section(found, "population"), base)
    arguments: dict[str, Any] = {
        name: _made(kind, found.pop(name), name)
        for name, kind in _SECTIONS.items()
        if name in found
    }
    strategy = _strategy(found.pop("strategy", None))
    if "availability" in found:
        arguments["availability"] = _availability(found.pop("availability"), base)
    training = dict(found.pop("training", {}))
    _known("training", training, {each.name for each in fields(LocalTraining)})
    _known("the file", found, set(_PLAIN))
    for name, value in found.items():
        if not isinstance(value, _PLAIN[name]) or isinstance(value, bool) != (_PLAIN[name] is bool):
            raise SimulationConfigError(f"{name} = {value!r}: another type is expected")
    for name in ("bundle", "trusted_keys", "rounds", "seed"):
        if name not in found:
            raise SimulationConfigError(f"{path}: {name} is missing")
    if "test" in found:
        arguments["test"] = _data(base / found.pop("test"))
    bundle, keys = found.pop("bundle"), found.pop("trusted_keys")
    return SimulationSettings(
        bundle=base / bundle,
        trusted_keys=tuple(base / str(key) for key in keys),
        population=population,
        strategy=strategy,
        training=training,
        arguments=arguments | found,
    )


def _population(section: dict[str, Any], base: Path) -> Population:
    shift = section.pop("shift", None)
    kind = section.pop("kind", "iid")
    if "data" not in section:
        raise SimulationConfigError("population: data is missing, an .npz file with x and y")
    data = base / str(section.pop("data"))
    x, y = _data(data)
    population: Population
    if kind == "sampled":
        population = _made(lambda **own: SampledPopulation(x=x, y=y, **own), section, "population")
    elif kind in KINDS:
        if kind == "by_user":
            with np.load(data, allow_pickle=False) as file:
                if "users" not in file:
                    raise SimulationConfigError(f"{data}: by_user needs an array users")
                section["users"] = file["users"]
        population = _made(lambda **own: KINDS[kind](x, y, **own), section, "population")
    else:
        raise SimulationConfigError(
            f"population.kind {kind!r}: must be one of {', '.join((*KINDS, 'sampled'))}"
        )
    if shift is None:
        return population
    if isinstance(shift.get("picture"), list):
        shift["picture"] = tuple(shift["picture"])
    shifted: Population = _made(
        lambda **own: partitions.Shifted(population=population, **own), shift, "population.shift"
    )
    return shifted


def _availability(section: dict[str, Any], base: Path) -> Any:
    kind = section.pop("kind", None)
    if kind == "diurnal":
        return _made(Diurnal, section, "availability")
    if kind == "recorded":
        trace = base / str(section.pop("trace", "trace.csv"))
        return _made(lambda **own: Recorded.from_csv(trace, **own), section, "availability")
    raise SimulationConfigError(f"availability.kind {kind!r}: must be diurnal or recorded")


def _strategy(section: Any) -> flower.Strategy | None:
    if section is None:
        return None
    options = {"name": section} if isinstance(section, str) else dict(section)
    name = options.pop("name", "FedAvg")
    if name not in STRATEGIES:
        raise SimulationConfigError(
            f"strategy {name!r}: must be one of {', '.join(STRATEGIES)}; others by "
            "rootlet_server.simulation.simulate"
        )
    defaults = {"fraction_train": 1.0, "fraction_evaluate": 0.0, "min_train_nodes": 1,
                "min_available_nodes": 1}  # fmt: skip
    kind = Scaffold if name == Scaffold.__name__ else getattr(flower, name)
    made: flower.Strategy = _made(lambda **own: kind(**(defaults | own)), options, "strategy")
    return made


def _made(kind: Callable[..., Any], section: dict[str, Any], name: str) -> Any:
    try:
        return kind(**section)
    except TypeError as error:
        text = str(error).partition(")")[2].strip() or str(error)
        raise SimulationConfigError(f"{name}: {text}") from error


def _section(found: dict[str, Any], name: str) -> dict[str, Any]:
    section = found.pop(name, None)
    if not isinstance(section, dict):
        raise SimulationConfigError(f"[{name}] is missing")
    return dict(section)


def _known(where: str, found: dict[str, Any], names: set[str]) -> None:
    unknown = sorted(set(found) - names)
    if unknown:
        raise SimulationConfigError(
            f"{where} has {', '.join(unknown)}, which is unknown; known are "
            f"{', '.join(sorted(names))}"
        )


def _data(path: Path) -> Examples:
    x, y = load_npz(path)
    return x, y


def merged_training(defaults: LocalTraining, changes: dict[str, Any]) -> LocalTraining:
    """The bundle's defaults with what the file says otherwise."""
    return replace(defaults, **changes)
