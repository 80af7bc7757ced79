"""The server's own evaluation: the adapter of a round on data that the server holds."""

from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from rootlet.data import load_npz
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.trainer import Trainer
from rootlet_server.federation.checkpoint import Adapter
from rootlet_server.federation.plan import FederationPlan

CentralEvaluation = Callable[[Adapter], Mapping[str, float]]


def central_evaluation(plan: FederationPlan) -> CentralEvaluation | None:
    """A function from an adapter to its loss and metric, or None where the plan names no data.

    Raises:
        BundleError: the bundle is refused.
        DataError: the data cannot be read.
    """
    if plan.evaluate_path is None:
        return None
    keys = [Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)) for key in plan.trusted_keys]
    trainer = Trainer(Bundle.load(plan.bundle_path, trusted_keys=keys))
    x, y = load_npz(plan.evaluate_path)

    def evaluate(adapter: Adapter) -> Mapping[str, float]:
        trainer.load_adapter(adapter)
        result = trainer.evaluate(x, y)
        return {"loss": result.loss, plan.metric: result.metric}

    return evaluate
