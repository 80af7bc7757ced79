"""Keeps a SuperLink and a ServerApp going until the run is over."""

import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from rootlet_server.errors import RunError, ServeConfigError, SuperLinkError
from rootlet_server.federation.address import join_host_port
from rootlet_server.federation.config import ServeConfig, ServePaths
from rootlet_server.federation.control import ControlLink
from rootlet_server.federation.events import (
    Evaluated,
    Event,
    EventLog,
    EventReader,
    Listening,
    OnEvent,
    Restarted,
    RoundFinished,
    RunFinished,
)
from rootlet_server.federation.node_keys import key_files, load_public_key
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.process import ChildProcess
from rootlet_server.federation.superlink import SuperLink, SuperLinkConfig
from rootlet_server.federation.tags import read_tags, select
from rootlet_server.federation.tls import TlsFiles, make_local_tls

RESTARTS, WITHIN_S = 20, 3600.0
_FOLLOW_S = 0.05
_TASK_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 10.0
_NOTICE_S = 2.0
_LINGER_S = 1.0  # devices that leave can still learn that their last answer was read


class ChildDiedError(RunError):
    """The SuperLink or the ServerApp ended by itself, once devices could join."""


def supervise(
    config: ServeConfig, paths: ServePaths, plan: FederationPlan, follower: "Follower"
) -> Evaluated:
    """Run the plan's rounds; every process is gone when this returns or raises.

    Where the SuperLink or the ServerApp dies once devices can join, both are started anew on the
    same port, and go on after the last finished round: at most `RESTARTS` times in an hour.

    Raises:
        FederationError: The run ended early, could not begin, or died once too often.
    """
    died: deque[float] = deque(maxlen=RESTARTS)
    link = SuperLink(_superlink(config, paths))
    while True:
        try:
            return _run(link, config, paths, plan, follower)
        except ChildDiedError as error:
            now = time.monotonic()
            if len(died) == RESTARTS and now - died[0] < WITHIN_S:
                raise
            died.append(now)
            restarted = Restarted(reason=str(error).partition("\n")[0])
            log_event(plan, restarted)
            follower.take(restarted)
            link = SuperLink(replace(link.config, port=link.port))


def _superlink(config: ServeConfig, paths: ServePaths) -> SuperLinkConfig:
    return SuperLinkConfig(
        host=config.host,
        port=config.port,
        tls=_tls_files(config, paths),
        node_auth=config.node_keys is not None,
        state_dir=paths.state_dir,
        database=config.database,
    )


def _run(
    link: SuperLink,
    config: ServeConfig,
    paths: ServePaths,
    plan: FederationPlan,
    follower: "Follower",
) -> Evaluated:
    """Start both processes and follow the run to its end."""
    tls = link.config.tls
    keys = _device_keys(config)
    selected = _selected(config, keys)
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
        log_event(plan, _listening(config, link, tls))
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


def log_event(plan: FederationPlan, event: Event) -> None:
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


class Follower:
    """Passes events on and remembers what the result needs."""

    def __init__(self, on_event: OnEvent) -> None:
        self.on_event = on_event
        self.rounds: list[RoundFinished] = []
        self.evaluated: Evaluated | None = None

    def take(self, event: Event) -> None:
        """Hear of an event."""
        if isinstance(event, RoundFinished):
            self.rounds.append(event)
        elif isinstance(event, Evaluated):
            self.evaluated = event
        self.on_event(event)


def _follow(reader: EventReader, runner: ChildProcess, link: SuperLink, follower: Follower) -> None:
    """Pass on events until the run has finished."""
    while True:
        ended = runner.returncode is not None
        for event in reader.read():
            follower.take(event)
            if isinstance(event, RunFinished):
                if event.error is not None:
                    raise _why_it_ended(event.error, link)
                return
        if ended:
            raise ChildDiedError(
                f"the ServerApp ended with code {runner.returncode}; the end of "
                f"{runner.log_path}:\n"
                f"{runner.log_tail()}"
            )
        if not link.running:
            raise ChildDiedError(f"the SuperLink died; its log is {link.log_path}")
        time.sleep(_FOLLOW_S)


def _why_it_ended(error: str, link: SuperLink) -> RunError:
    """A ServerApp whose SuperLink has died ends with an error of its own; it is not the reason."""
    deadline = time.monotonic() + _NOTICE_S
    while link.running and time.monotonic() < deadline:
        time.sleep(_FOLLOW_S)
    if not link.running:
        return ChildDiedError(f"the SuperLink died; its log is {link.log_path}")
    return RunError(f"the run ended early: {error}")
