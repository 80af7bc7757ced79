package org.rootlet

/** Root of every error that rootlet raises on purpose; the names are those of the Python runtime. */
open class RootletException(message: String, cause: Throwable? = null) : Exception(message, cause)

/** A bundle was refused before any of it reached the engine. */
open class BundleException(message: String, cause: Throwable? = null) : RootletException(message, cause)

/** The file is not a stored zip of the expected shape. */
class ArchiveError(message: String, cause: Throwable? = null) : BundleException(message, cause)

/** An entry name is not a plain top-level name. */
class UnsafePathError(message: String) : BundleException(message)

/** Something is larger than declared, or than the limits allow. */
class SizeLimitError(message: String) : BundleException(message)

/** The manifest cannot be read, or holds an unknown field or an impossible value. */
class ManifestError(message: String, cause: Throwable? = null) : BundleException(message, cause)

/** The signature does not belong to these manifest bytes. */
class SignatureError(message: String) : BundleException(message)

/** The bundle's publisher is not among the trusted keys. */
class UnknownPublisherError(message: String) : BundleException(message)

/** The bundle carries no signature. */
class UnsignedError(message: String) : BundleException(message)

/** The bundle is older than a version already accepted. */
class RollbackError(message: String) : BundleException(message)

/** The bundle is past its expiry. */
class ExpiredError(message: String) : BundleException(message)

/** A file that the manifest declares is absent. */
class MissingFileError(message: String) : BundleException(message)

/** A file that the manifest does not declare is present. */
class ExtraFileError(message: String) : BundleException(message)

/** A file's SHA-256 or size differs from the manifest. */
class HashMismatchError(message: String) : BundleException(message)

/** A graph uses an operator, a domain or an external file outside the allow-list. */
class OperatorError(message: String, cause: Throwable? = null) : BundleException(message, cause)

/** Examples that cannot be used: shape, dtype, NaN, a label out of range. */
class DataError(message: String) : RootletException(message)

/** Training could not go on. */
open class TrainingError(message: String, cause: Throwable? = null) : RootletException(message, cause)

/** Training made the adapter worse; the previous one is kept. */
open class DivergedError(message: String) : TrainingError(message)

/** A loss or a value of the adapter left the finite numbers; the previous adapter is kept. */
class NonFiniteLossError(message: String) : DivergedError(message)

/** Names, shapes or values do not fit the bundle. */
class AdapterError(message: String) : RootletException(message)

/** A checkpoint is damaged or belongs to another bundle. */
class CheckpointError(message: String, cause: Throwable? = null) : RootletException(message, cause)
