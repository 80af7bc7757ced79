"""`serve`: a SuperLink, a ServerApp and an improved bundle, from one call."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rootlet.data import load_npz
from rootlet.ledger import Ledger
from rootlet.lock import DirectoryLock
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.examples import check_examples
from rootlet_runtime.manifest import Manifest
from rootlet_runtime.signing import load_private_key, public_key_hex
from rootlet_runtime.writer import publish
from rootlet_server.errors import RunError, ServeConfigError, SuperLinkError
from rootlet_server.federation.address import join_host_port
from rootlet_server.federation.checkpoint import RoundCheckpoint
from rootlet_server.federation.config import ServeConfig, ServePaths
from rootlet_server.federation.control import ControlLink
from rootlet_server.federation.events import (
    Evaluated,
    Event,
    EventLog,
    EventReader,
    Listening,
    OnEvent,
    Published,
    RoundFinished,
    RunFinished,
)
from rootlet_server.federation.feedback import FeedbackFile
from rootlet_server.federation.node_keys import key_files, load_public_key
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.process import ChildProcess
from rootlet_server.federation.strategies.loramean import LORA_A
from rootlet_server.federation.superlink import SuperLink, SuperLinkConfig
from rootlet_server.federation.tags import read_tags, select
from rootlet_server.federation.tls import TlsFiles, make_local_tls

_FOLLOW_S = 0.05
_TASK_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 10.0
_LINGER_S = 1.0  # devices that leave can still learn that their last answer was read


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
    follower = _Follower(on_event or (lambda event: None))
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
        _prepare_checkpoint(bundle, plan)
        plan.save(paths.plan)
        evaluated = _run(config, paths, plan, follower)
        final = RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256=plan.manifest_sha256)
        version = publish(bundle, out, signing_key=private_key, adapter=final.adapter).version
        Ledger(paths.state_dir).append(
            "bundle published", path=str(out), version=version, round=final.round
        )
        plan.checkpoint_path.unlink()
    published = Published(path=str(out), version=version)
    _log(plan, published)
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


def _prepare_checkpoint(bundle: Bundle, plan: FederationPlan) -> None:
    """Check the checkpoint of an earlier call, or write the bundle's own adapter as round 0."""
    if plan.checkpoint_path.exists():
        found = RoundCheckpoint.load(plan.checkpoint_path, manifest_sha256=plan.manifest_sha256)
        found.require_strategy(plan.strategy, plan.checkpoint_path)
        return
    RoundCheckpoint(
        manifest_sha256=plan.manifest_sha256, round=0, adapter=bundle.initial_adapter()
    ).save(plan.checkpoint_path)


def _run(
    config: ServeConfig, paths: ServePaths, plan: FederationPlan, follower: "_Follower"
) -> Evaluated:
    """Run the plan's rounds; every process is gone when this returns or raises."""
    tls = _tls_files(config, paths)
    keys = _device_keys(config)
    selected = _selected(config, keys)
    link = SuperLink(
        SuperLinkConfig(
            host=config.host,
            port=config.port,
            tls=tls,
            node_auth=config.node_keys is not None,
            state_dir=paths.state_dir,
            database=config.database,
        )
    )
    security = ["--insecure"] if tls is None else ["--root-certificates", str(tls.ca)]
    reader = EventReader(plan.events_path, from_end=True)
    with ExitStack() as stack:
        runner = stack.enter_context(  # started first: it loads while the SuperLink starts
            ChildProcess(
                "rootlet_server.federation.serverapp_main",
                ["--runtime-api-address", link.address, *security],
                log_path=paths.state_dir / "serverapp.log",
                environment=link.environment,
            )
        )
        stack.enter_context(link)
        stack.callback(runner.stop)  # before the SuperLink, to which it reports its end
        control = stack.enter_context(
            ControlLink(
                link.address,
                root_certificate=tls.ca.read_bytes() if tls else None,
                task_secret=link.task_secret,
            )
        )
        for key in keys.values():
            control.register_device(key)
        if config.select:
            nodes = control.nodes()
            chosen = tuple(sorted(nodes[keys[name]] for name in selected))
            replace(plan, nodes=chosen).save(paths.plan)
        _log(plan, _listening(config, link, tls))
        control.submit(paths.plan)
        runner.send_line(_task_token(control))
        _follow(reader, runner, link, follower)
        runner.wait(_END_TIMEOUT_S)
        time.sleep(_LINGER_S)
    if follower.evaluated is None:
        raise RunError(f"the run ended without an evaluation; see {plan.events_path}")
    return follower.evaluated


def _device_keys(config: ServeConfig) -> dict[str, bytes]:
    """The public keys of the devices that may join, by file name, if they are restricted."""
    if config.node_keys is None:
        return {}
    keys = {path.name: load_public_key(path) for path in key_files(config.node_keys)}
    if len(set(keys.values())) < config.min_devices:
        raise ServeConfigError(
            f"min_devices is {config.min_devices}, but {config.node_keys} lets "
            f"{len(set(keys.values()))} devices join; add device keys, or lower --min-devices"
        )
    return keys


def _selected(config: ServeConfig, keys: Mapping[str, bytes]) -> set[str]:
    """The key files that carry the selected tags."""
    if config.tags is None:
        return set()
    tags = read_tags(config.tags, list(keys))
    found = select(tags, config.select) if config.select else set(keys)
    if len({keys[name] for name in found}) < config.min_devices:
        raise ServeConfigError(
            f"min_devices is {config.min_devices}, but {len(found)} devices carry "
            f"{', '.join(config.select)}; tag more, or lower --min-devices"
        )
    return found


def _tls_files(config: ServeConfig, paths: ServePaths) -> TlsFiles | None:
    if config.tls == "off":
        return None
    if config.tls == "auto":
        return make_local_tls(paths.tls, config.host, config.tls_names)
    ca, certificate, key = config.tls
    return TlsFiles.load(ca.resolve(), certificate.resolve(), key.resolve(), host=config.host)


def _listening(config: ServeConfig, link: SuperLink, tls: TlsFiles | None) -> "Listening":
    named = config.tls_names[0] if config.tls_names else config.host
    return Listening(
        address=join_host_port(named, link.port),
        root_certificate=str(tls.ca) if tls else None,
        node_auth=config.node_keys is not None,
    )


def _log(plan: FederationPlan, event: Event) -> None:
    """Append an event of the server itself to the ServerApp's."""
    log = EventLog(plan.events_path)
    log.write(event)
    log.close()


def _task_token(control: ControlLink) -> str:
    """The token of the submitted run's ServerApp task."""
    deadline = time.monotonic() + _TASK_TIMEOUT_S
    while time.monotonic() < deadline:
        if token := control.take_task():
            return token
        time.sleep(_FOLLOW_S)
    raise SuperLinkError(f"the SuperLink handed out no task for the run in {_TASK_TIMEOUT_S:g} s")


class _Follower:
    """Passes events on and remembers what the result needs."""

    def __init__(self, on_event: OnEvent) -> None:
        self.on_event = on_event
        self.rounds: list[RoundFinished] = []
        self.evaluated: Evaluated | None = None

    def take(self, event: Event) -> None:
        if isinstance(event, RoundFinished):
            self.rounds.append(event)
        elif isinstance(event, Evaluated):
            self.evaluated = event
        self.on_event(event)


def _follow(
    reader: EventReader, runner: ChildProcess, link: SuperLink, follower: _Follower
) -> None:
    """Pass on events until the run has finished."""
    while True:
        ended = runner.returncode is not None
        for event in reader.read():
            follower.take(event)
            if isinstance(event, RunFinished):
                if event.error is not None:
                    raise RunError(f"the run ended early: {event.error}")
                return
        if ended:
            raise RunError(
                f"the ServerApp ended with code {runner.returncode}; the end of "
                f"{runner.log_path}:\n"
                f"{runner.log_tail()}"
            )
        if not link.running:
            raise SuperLinkError(f"the SuperLink died; its log is {link.log_path}")
        time.sleep(_FOLLOW_S)
