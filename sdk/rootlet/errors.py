"""The error tree of the SDK; its root, `RootletError`, is the device runtime's.

```
RootletError
├── FleetError                   the link to the server
│   ├── ConnectionFailedError    no answer after the retries; worth trying again later
│   │   └── ServerBusyError      the server answers 429 or 5xx
│   ├── InsecureAddressError     plain HTTP to anything but this machine
│   ├── AuthenticationError      401: clock, key or node id
│   ├── NodeStillActiveError     412/2004: the server counts this key as online, or does not know it
│   ├── RunEndedError            412/2007: the run has finished or was stopped
│   ├── MessageGoneError         the server no longer has a message that it announced
│   ├── ServerRefusedError       any other refusal, with its status and Flower code
│   └── ProtocolError            an answer that is malformed, too large or does not match its hash
├── NodeKeyError                 a node key that cannot be read or used
├── RecordError                  records that do not follow rootlet's contract
├── RequestRefusedError          a well-formed request that this device does not accept
├── ConfigError                  a configuration value outside its bounds
├── StoreError                   observed examples that cannot be kept or read
├── KeystoreError                a key that is missing, wrong, or that its key store does not give
├── LedgerError                  a ledger that is broken, or that the disk refuses
├── StateError                   a state directory in use, or a client in the wrong state
└── NotNowError                  the participation policy does not allow it at the moment
```
"""

from rootlet_runtime.errors import RootletError


class FleetError(RootletError):
    """Root of what can go wrong between this device and the server."""

    retryable = False
    """Whether the same call may succeed later without anybody changing anything."""


class ConnectionFailedError(FleetError):
    """No answer after the retries."""

    retryable = True


class ServerBusyError(ConnectionFailedError):
    """The server answers, but only with 429 or 5xx."""


class InsecureAddressError(FleetError, ValueError):
    """Plain HTTP to anything but this machine."""


class AuthenticationError(FleetError):
    """The server does not accept this node's signature."""


class NodeStillActiveError(FleetError):
    """The server refuses to activate this key: it counts it as online, or does not know it."""

    retryable = True


class RunEndedError(FleetError):
    """The run that a message belongs to has finished or was stopped."""


class MessageGoneError(FleetError):
    """The server no longer has (or never got) the objects of a message that it announced."""


class ServerRefusedError(FleetError):
    """A refusal without a class of its own.

    Attributes:
        status: HTTP status.
        code: Flower's error code; 0 where the answer names none.
    """

    def __init__(self, message: str, *, status: int, code: int) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ProtocolError(FleetError):
    """An answer that is malformed, too large or does not match its hash."""


class NodeKeyError(RootletError, ValueError):
    """A node key that cannot be read or used."""


class RecordError(RootletError, ValueError):
    """Records that do not follow rootlet's contract (`rootlet.protocol`)."""


class RequestRefusedError(RootletError):
    """A well-formed request that this device does not accept."""


class ConfigError(RootletError, ValueError):
    """A configuration value outside its bounds."""


class StoreError(RootletError):
    """Observed examples cannot be kept or read."""


class KeystoreError(RootletError):
    """A key is missing or is another state's, or its key store cannot be used."""


class LedgerError(RootletError):
    """A ledger that is broken, or that the disk refuses."""


class StateError(RootletError):
    """The state directory is in use by another process, or a client is in the wrong state."""


class NotNowError(RootletError):
    """The participation policy does not allow it at the moment."""
