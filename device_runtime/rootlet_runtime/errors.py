"""The error tree of the device runtime.

```
RootletError
├── BundleError                 a bundle is refused; nothing of it was handed to the engine
│   ├── ArchiveError            not a stored zip of the expected shape
│   ├── UnsafePathError         an entry name that is not a plain top-level name
│   ├── SizeLimitError          larger than declared or than the limits allow
│   ├── ManifestError           unknown schema or field, impossible value
│   ├── SignatureError          the signature does not belong to these manifest bytes
│   ├── UnknownPublisherError   signed (or claimed) by a key that is not trusted here
│   ├── UnsignedError           no signature, and unsigned bundles were not allowed
│   ├── RollbackError           older than a version already accepted
│   ├── ExpiredError            past its expiry
│   ├── MissingFileError        a declared file is absent
│   ├── ExtraFileError          an undeclared file is present
│   ├── HashMismatchError       a file's SHA-256 or size differs from the manifest
│   ├── FeedbackPartError       a refreshed feedback that is not for this bundle, or not signed
│   └── OperatorError           an operator, domain or external file outside the allow-list
├── DataError                   examples that cannot be used: shape, dtype, NaN, label out of range
├── TrainingError
│   └── DivergedError           training made the adapter worse; the previous one is kept
│       └── NonFiniteLossError  a loss or a value of the adapter left the finite numbers
├── AdapterError                names, shapes, dtypes or values do not fit the bundle
├── KeyFileError                a key file that is unreadable or holds another kind of key
├── CheckpointError             a checkpoint that is damaged or belongs to another bundle
└── MissingExtraError           a dependency is not installed; the message gives the pip line
```
"""


class RootletError(Exception):
    """Root of every error that rootlet raises on purpose."""


class BundleError(RootletError):
    """A bundle was refused before any of it reached the engine."""


class ArchiveError(BundleError):
    """The file is not a stored zip of the expected shape."""


class UnsafePathError(BundleError):
    """An entry name is not a plain top-level name."""


class SizeLimitError(BundleError):
    """Something is larger than declared, or than the limits allow."""


class ManifestError(BundleError):
    """The manifest cannot be read, or holds an unknown field or an impossible value."""


class SignatureError(BundleError):
    """The signature does not belong to these manifest bytes."""


class UnknownPublisherError(BundleError):
    """The bundle's publisher is not among the trusted keys."""


class UnsignedError(BundleError):
    """The bundle carries no signature and unsigned bundles were not allowed."""


class RollbackError(BundleError):
    """The bundle is older than a version already accepted."""


class ExpiredError(BundleError):
    """The bundle is past its expiry."""


class MissingFileError(BundleError):
    """A file that the manifest declares is absent."""


class ExtraFileError(BundleError):
    """A file that the manifest does not declare is present."""


class HashMismatchError(BundleError):
    """A file's SHA-256 or size differs from the manifest."""


class OperatorError(BundleError):
    """A graph uses an operator, a domain or an external file outside the allow-list."""


class FeedbackPartError(BundleError):
    """A refreshed feedback that is damaged, old, of another bundle or of another signer."""


class DataError(RootletError, ValueError):
    """Examples that cannot be used."""


class TrainingError(RootletError):
    """Training could not go on."""


class DivergedError(TrainingError):
    """Training made the adapter worse and never better; the previous adapter is kept."""


class NonFiniteLossError(DivergedError):
    """A loss or a value of the adapter left the finite numbers; the previous adapter is kept."""


class AdapterError(RootletError, ValueError):
    """An adapter does not fit the bundle."""


class KeyFileError(RootletError):
    """A key file cannot be read or written, or holds another kind of key."""


class CheckpointError(RootletError):
    """A checkpoint is damaged or belongs to another bundle."""


class MissingExtraError(RootletError, ImportError):
    """An optional dependency is not installed."""
