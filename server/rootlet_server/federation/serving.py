"""`serve`: a SuperLink, a ServerApp and an improved bundle, from one call."""

import time
from dataclasses import dataclass
from pathlib import Path

from rootlet.data import load_npz
from rootlet.ledger import Ledger
from rootlet.lock import DirectoryLock
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.examples import check_examples
from rootlet_runtime.manifest import Manifest
from rootlet_runtime.signing import load_private_key, public_key_hex
from rootlet_runtime.writer import publish
from rootlet_server.errors import ServeConfigError
from rootlet_server.federation.checkpoint import RoundCheckpoint
from rootlet_server.federation.config import ServeConfig, ServePaths
from rootlet_server.federation.events import (
    Evaluated,
    OnEvent,
    Published,
    RoundFinished,
)
from rootlet_server.federation.feedback import FeedbackFile
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.privacy import FederationAccount
from rootlet_server.federation.strategies.loramean import LORA_A
from rootlet_server.federation.supervision import Follower, log_event, supervise


@dataclass(frozen=True, kw_only=True)
class ServeResult:
    """What a federation came to.

    Attributes:
        bundle: The improved bundle.
        version: Its version.
        rounds: The rounds that this call ran, in order.
        evaluated: The devices' evaluation of the final adapter.
        seconds: From the call to the written bundle.
    """

    bundle: Path
    version: int
    rounds: tuple[RoundFinished, ...]
    evaluated: Evaluated
    seconds: float


def serve(config: ServeConfig, on_event: OnEvent | None = None) -> ServeResult:
    """Serve a federation until its last round, and write the improved bundle.

    A call that was interrupted (Ctrl-C, a crash, a power cut) loses no finished round: the next
    call with the same state directory and bundle goes on after the last one.

    Args:
        config: What to serve.
        on_event: Called with each event, in order, in the caller's thread.

    Returns:
        The improved bundle and how it came about.

    Raises:
        BundleError: the bundle is refused.
        StateError: another server uses the state directory, or it cannot be written.
        FederationError: its subclass names the reason.
        KeyboardInterrupt: after every process was stopped.
    """
    start = time.monotonic()
    follower = Follower(on_event or (lambda event: None))
    private_key = load_private_key(config.signing_key)
    signer = public_key_hex(private_key.public_key())
    if signer not in {public_key_hex(key) for key in config.trusted_keys}:
        raise ServeConfigError(
            f"the signing key's public key {signer} is not among the trusted keys, so devices "
            "would refuse the improved bundle; add it (--trusted-key), or sign with a trusted key"
        )
    with (
        Bundle.load(config.bundle, trusted_keys=config.trusted_keys) as bundle,
        DirectoryLock(config.state_dir),
    ):
        paths = ServePaths(
            state_dir=config.state_dir.resolve(),
            manifest_sha256=bundle.manifest_sha256,
            name=bundle.manifest.name,
            version=bundle.manifest.version,
        )
        out = config.out or paths.improved
        out.parent.mkdir(parents=True, exist_ok=True)  # refused now rather than after the rounds
        if config.feedback is not None:
            FeedbackFile(config.feedback, bundle).read()
        plan = _make_plan(config, bundle, paths)
        _prepare_checkpoint(bundle, plan, resume=config.resume)
        _check_account(plan)
        plan.save(paths.plan)
        evaluated = supervise(config, paths, plan, follower)
        final = RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256=plan.manifest_sha256)
        version = publish(bundle, out, signing_key=private_key, adapter=final.adapter).version
        Ledger(paths.state_dir).append(
            "bundle published", path=str(out), version=version, round=final.round
        )
        RoundCheckpoint.forget(plan.checkpoint_path, manifest_sha256=plan.manifest_sha256)
    published = Published(path=str(out), version=version)
    log_event(plan, published)
    follower.on_event(published)
    return ServeResult(
        bundle=out,
        version=version,
        rounds=tuple(follower.rounds),
        evaluated=evaluated,
        seconds=time.monotonic() - start,
    )


def _make_plan(config: ServeConfig, bundle: Bundle, paths: ServePaths) -> FederationPlan:
    manifest = bundle.manifest
    batch_size = config.batch_size or manifest.training.batch_size
    if batch_size > manifest.max_batch:
        raise ServeConfigError(
            f"batch_size is {batch_size}; the bundle takes at most {manifest.max_batch}"
        )
    by_example = config.privacy is not None and config.privacy.unit == "example"
    if by_example and "grads" not in manifest.graphs:
        raise ServeConfigError(
            "privacy by example needs the bundle's grads graph, and it has none: compile it with "
            "CompileConfig(privacy=PrivacyConfig())"
        )
    data = config.evaluate_data
    if data is not None:  # read again by the ServerApp, but refused before any device trains
        check_examples(*load_npz(data), manifest)
    return FederationPlan(
        bundle=manifest.name,
        bundle_version=manifest.version,
        manifest_sha256=bundle.manifest_sha256,
        task=manifest.task,
        rounds=config.rounds,
        min_devices=config.min_devices,
        cohort_size=config.cohort_size,
        epochs=config.epochs or manifest.training.epochs,
        batch_size=batch_size,
        learning_rate=config.learning_rate or manifest.training.learning_rate,
        deadline_s=config.deadline_s,
        wait_s=config.wait_s,
        max_examples=config.max_examples,
        checkpoint_path=paths.checkpoint,
        events_path=(config.events or paths.state_dir / "events.jsonl").resolve(),
        bundle_path=config.bundle.resolve(),
        trusted_keys=tuple(public_key_hex(key) for key in config.trusted_keys),
        evaluate_path=data.resolve() if data else None,
        feedback_path=config.feedback.resolve() if config.feedback else None,
        max_update_norm=config.max_update_norm,
        secure=config.secure,
        privacy=config.privacy,
        strategy=config.strategy or _default_strategy(config, manifest),
        strategy_options=dict(config.strategy_options),
        over_select=config.over_select,
        min_replies=config.min_replies,
        compression=config.compression,
        top_k=config.top_k,
    )


def _default_strategy(config: ServeConfig, manifest: Manifest) -> str:
    """The mean that is nearest to the mean of the models, of what the server sees."""
    sees_updates = config.secure is None and config.privacy is None
    trains_a = any(spec.name.endswith(LORA_A) for spec in manifest.adapter)
    return "loramean" if trains_a and sees_updates else "fedavg"


def _check_account(plan: FederationPlan) -> None:
    """Refuse a broken ledger, or a budget that holds no round, before any device is asked.

    Raises:
        LedgerError: The federation's ledger is broken.
        BudgetSpentError: Nothing is left, and nothing was learnt that could be published.
    """
    account = FederationAccount(plan.checkpoint_path.parent, plan.privacy)
    found = RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256=plan.manifest_sha256)
    if plan.privacy is not None and found.round == 0:
        account.require(1, plan.privacy.of_round(plan.epochs))


def _prepare_checkpoint(bundle: Bundle, plan: FederationPlan, *, resume: bool) -> None:
    """Check the checkpoint of an earlier call, or write the bundle's own adapter as round 0."""
    if RoundCheckpoint.exists(plan.checkpoint_path, manifest_sha256=plan.manifest_sha256):
        found = RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256=plan.manifest_sha256)
        found.require_strategy(plan.strategy, plan.checkpoint_path)
        return
    if resume:
        raise ServeConfigError(
            f"--resume: {plan.checkpoint_path} has no round of {plan.bundle} {plan.bundle_version} "
            "to go on from; leave it out to begin, or give the --state-dir of the federation"
        )
    RoundCheckpoint(
        manifest_sha256=plan.manifest_sha256, round=0, adapter=bundle.initial_adapter()
    ).save(plan.checkpoint_path)
