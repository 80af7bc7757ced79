"""The error tree of the server.

```
RootletError                       (rootlet_runtime.errors)
├── FederationError                rounds could not be run
│   ├── ServeConfigError           a setting outside its bounds
│   │   └── PublicAddressError     a public address without TLS and node authentication
│   ├── FlowerVersionError         flwr is not the version whose wire this release speaks
│   ├── CertificateError           TLS files that cannot be read or do not fit the address
│   ├── NodeKeyError               a device key that is not a P-256, P-384 or P-521 public key
│   ├── SuperLinkError             the SuperLink did not start, or died
│   ├── RunError                   the ServerApp ended before its last round
│   ├── NotEnoughDevicesError      too few devices came, or too few answered
│   ├── ReplyError                 a device's reply that may not be aggregated
│   ├── AggregationError           answers from which a strategy makes no usable adapter
│   └── RoundCheckpointError       a round checkpoint that is damaged or of another bundle
├── StrategyStateError             a strategy whose own state cannot be saved
└── SimulationError                a simulation could not be run
    ├── SimulationConfigError      a setting outside its bounds, or two that exclude each other
    ├── PopulationError            clients whose examples cannot be used
    ├── NotVectorisableError       a model that cannot be stacked
    ├── PreAggregationError        a strategy for which partial averages are not the same
    ├── WorkerError                a worker process or Ray actor died
    └── SimulationStateError       saved state that is damaged or of another simulation
```
"""

from rootlet_runtime.errors import RootletError


class FederationError(RootletError):
    """Rounds could not be run."""


class ServeConfigError(FederationError, ValueError):
    """A setting of `rootlet serve` is outside its bounds."""


class PublicAddressError(ServeConfigError):
    """A public address was asked for without TLS and node authentication."""


class FlowerVersionError(FederationError):
    """The installed flwr is not the version that this release speaks."""


class CertificateError(FederationError):
    """TLS files cannot be read, or do not fit the address."""


class NodeKeyError(FederationError, ValueError):
    """A device key is not a public key on a curve that the Fleet API accepts."""


class SuperLinkError(FederationError):
    """The SuperLink did not start, or died."""


class RunError(FederationError):
    """The ServerApp ended before its last round."""


class NotEnoughDevicesError(FederationError):
    """Too few devices came, or too few answered."""


class ReplyError(FederationError, ValueError):
    """A device's reply may not be aggregated."""


class AggregationError(FederationError):
    """A strategy makes no usable adapter from the answers of a round."""


class StrategyStateError(RootletError):
    """A strategy's own state cannot be saved."""


class RoundCheckpointError(FederationError):
    """A round checkpoint is damaged, or belongs to another bundle."""


class SimulationError(RootletError):
    """A simulation could not be run."""


class SimulationConfigError(SimulationError, ValueError):
    """A setting of a simulation is outside its bounds, or excludes another."""


class PopulationError(SimulationError, ValueError):
    """Clients whose examples cannot be used."""


class NotVectorisableError(SimulationError):
    """A model cannot be stacked: its clients are simulated one at a time, or not at all."""


class PreAggregationError(SimulationError, ValueError):
    """A strategy does not give the same result from averages of parts."""


class WorkerError(SimulationError):
    """A worker process or Ray actor died."""


class SimulationStateError(SimulationError):
    """Saved state is damaged, or belongs to another simulation."""
