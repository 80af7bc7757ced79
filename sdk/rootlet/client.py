"""What an app embeds: it observes, predicts, trains and joins; the rest happens beside the app."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from rootlet import background
from rootlet.conditions import DeviceConditions, read_conditions
from rootlet.continual import Continual
from rootlet.energy_account import Allowance
from rootlet.errors import ConfigError, StateError
from rootlet.fleet.connection import FleetConnection
from rootlet.fleet.keys import NodeKey
from rootlet.gate import Gate
from rootlet.learner import Learner
from rootlet.ledger import Ledger
from rootlet.local_training import LocalTraining
from rootlet.membership import Connect, Means, Membership
from rootlet.participant import DataSource
from rootlet.policy import ParticipationPolicy
from rootlet.privacy_terms import PrivacyAccount, PrivacyPolicy
from rootlet.secagg.participation import SecureParticipation
from rootlet.secagg.policy import SecurePolicy
from rootlet.state import StateDirectory
from rootlet.status import DeviceEvent, DeviceState, DeviceStatus
from rootlet.store import ExampleStore
from rootlet.train_config import TrainConfig
from rootlet.vault import EXAMPLES, LEARNT, KeystoreName
from rootlet_runtime import examples
from rootlet_runtime.bundle import Bundle
from rootlet_runtime.engines import largest_step
from rootlet_runtime.errors import DataError, RootletError
from rootlet_runtime.feedback_part import read_part
from rootlet_runtime.fit import FitResult, Progress

DEFAULT_POLICY = ParticipationPolicy()
DEFAULT_TRAINING = TrainConfig()
DEFAULT_SECURE = SecurePolicy()
DEFAULT_PRIVACY = PrivacyPolicy()
LEAVE_TIMEOUT_S = 90.0
CLOSE_TIMEOUT_S = 10.0

T = TypeVar("T")
_log = logging.getLogger(__name__)


class DeviceClient:
    """One device: its bundle, its examples, its adapter and its membership in a federation.

    Every method may be called from any thread. Training and the link run in daemon threads of
    lowered priority; what goes wrong there is logged, told to ``on_event`` and kept in ``status``,
    and is never raised into the app.

    A process that is killed at any moment loses at most the last second of observations: the next
    client of the same ``state_dir`` has the last finished adapter and goes on.

    Args:
        bundle: What to train; verified by ``Bundle.load``.
        state_dir: Where the device keeps what must outlive the process; one client at a time.
        policy: When the device may train and take part.
        train: How it trains for itself, and what a server may ask of it.
        conditions: Tells the device's conditions; the default reads Linux's sysfs.
        data: Where examples come from; None for those that the app observes.
        capacity: Most observed examples kept.
        retention_days: Observed examples that are older are gone; None for no such bound.
        keystore: Where the keys of what is kept lie: ``file``, beside it, or ``keyring``, in the
            operating system's keystore (`rootlet.vault`).
        recheck_s: Longest time in seconds that a reading of the conditions is used.
        on_event: Hears of everything that happens, in a background thread.

    Raises:
        RollbackError: A newer version of the bundle was accepted here before.
        StateError: Another client uses the state directory.
        StoreError: The state directory holds examples of other shapes.
        ConfigError: ``train`` asks for more than the bundle takes.
    """

    def __init__(
        self,
        bundle: Bundle,
        state_dir: Path | str,
        *,
        policy: ParticipationPolicy = DEFAULT_POLICY,
        train: TrainConfig = DEFAULT_TRAINING,
        conditions: Callable[[], DeviceConditions] = read_conditions,
        data: DataSource | None = None,
        capacity: int = 4096,
        retention_days: float | None = None,
        keystore: KeystoreName = "file",
        recheck_s: float = 2.0,
        on_event: Callable[[DeviceEvent], object] | None = None,
    ) -> None:
        manifest = bundle.manifest
        self._settings = train.resolved(manifest.training)
        most = largest_step(train.engine, manifest)
        if self._settings.batch_size > most:
            raise ConfigError(
                f"batch_size is {self._settings.batch_size}, above the {most} that bundle "
                f"{manifest.name} takes with engine {train.engine}: give at most {most}"
            )
        self._bundle, self._on_event, self._recheck_s = bundle, on_event, recheck_s
        self._limits, self._budget = train.limits(), policy.energy
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._last_error = ""
        self._membership: Membership | None = None
        self._running: list[Future[Any]] = []
        self._state = StateDirectory(Path(state_dir))
        try:
            self._state.accept(manifest)
            vault = self._state.vault(keystore)
            examples_cipher = vault.cipher(EXAMPLES)
            self._store = ExampleStore(
                self._state.examples,
                manifest.x,
                manifest.y,
                capacity=capacity,
                cipher=examples_cipher,
                retention_days=retention_days,
            )
            folder = self._state.adapter(bundle.manifest_sha256)
            self._data: DataSource = self._store if data is None else data
            self._continual = Continual(
                train.continual,
                manifest,
                self._state.replay,
                self._data.holdout,
                examples_cipher,
            )
            self._watches_drift = train.continual.drift
            self._learner = Learner(
                bundle,
                folder,
                train.num_threads,
                self._continual,
                engine=train.engine,
                cipher=vault.cipher(LEARNT),
            )
            self._state.remove_other_adapters(bundle.manifest_sha256)
        except BaseException:
            self._state.close()
            raise
        self._observes = data is None
        self._gate = Gate(
            policy,
            conditions,
            self._state,
            has_examples=lambda: data is not None or len(self._store) > 0,
            recheck_s=recheck_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the app's examples ----------------------------------------------------------------------

    def observe(self, x: npt.ArrayLike, label: npt.ArrayLike) -> None:
        """Takes one example to learn from; returns at once, whatever runs in the background.

        Args:
            x: One input, without a batch dimension.
            label: Its class, or its target values.

        Raises:
            DataError: Shape, dtype or value is not what the bundle takes.
            StateError: The client is closed, or reads its examples from ``data``.
        """
        self._check_open()
        if not self._observes:
            raise StateError("this client reads its examples from data: add the example there")
        checked_x, checked_y = examples.check_examples(
            _as_array("x", x)[np.newaxis],
            _as_array("label", label)[np.newaxis],
            self._bundle.manifest,
        )
        self._store.observe(checked_x[0], checked_y[0])

    def predict(self, x: npt.ArrayLike, *, task: str | None = None) -> npt.NDArray[np.float32]:
        """Applies the last finished adapter; never waits for a training.

        Args:
            x: One input, or inputs ``[N, ...]``.
            task: Takes the adapter that was kept under this name instead.

        Returns:
            Class probabilities or regression values: ``[K]`` for one input, else ``[N, K]``.

        Raises:
            DataError: Shape, dtype or value is not what the bundle takes.
            AdapterError: The task has no adapter.
        """
        array = _as_array("x", x)
        single = array.ndim == len(self._bundle.manifest.x.shape) - 1
        outputs = self._learner.predict(array[np.newaxis] if single else array, task)
        if self._watches_drift and task is None and self._learner.drift.saw(outputs):
            detail = "the model is less sure of its predictions than it was"
            self._start(
                "rootlet-drift", lambda: self._tell(DeviceEvent(kind="drift", detail=detail))
            )
        found: npt.NDArray[np.float32] = outputs[0] if single else outputs
        return found

    # -- adapters by task ------------------------------------------------------------------------

    @property
    def tasks(self) -> list[str]:
        """The names under which adapters are kept, sorted."""
        return self._learner.tasks.tasks()

    def keep_task(self, task: str) -> None:
        """Keeps the last finished adapter under a name, in place of the one before.

        Args:
            task: Lower-case letters, digits, ``_`` and ``-``.

        Raises:
            AdapterError: Not a name, or there are sixteen others.
            CheckpointError: The disk refused.
        """
        self._check_open()
        self._learner.keep_task(task)

    def use_task(self, task: str) -> None:
        """Goes on from the adapter that is kept under a name: ``predict`` and training use it.

        Waits for a training under way, which ends as it would have.

        Raises:
            AdapterError: There is none of this name.
            CheckpointError: Its file is damaged, or the disk refused.
        """
        self._check_open()
        self._learner.use_task(task)

    def forget_task(self, task: str) -> None:
        """Removes the adapter that is kept under a name, if there is one."""
        self._check_open()
        self._learner.tasks.remove(task)

    def erase(self) -> None:
        """Removes every observed and replayed example from the device; what was learnt stays.

        A training under way goes on with the examples that it has in memory; none of them is kept.
        """
        self._continual.erase()
        self._store.erase()  # with their key, so that the buffer's are gone for good too

    # -- training --------------------------------------------------------------------------------

    @overload
    def train_locally(self, progress: Progress | None = None) -> FitResult: ...

    @overload
    def train_locally(
        self, progress: Progress | None = None, *, wait: Literal[True]
    ) -> FitResult: ...

    @overload
    def train_locally(
        self, progress: Progress | None = None, *, wait: Literal[False]
    ) -> Future[FitResult]: ...

    def train_locally(
        self, progress: Progress | None = None, *, wait: bool = True
    ) -> FitResult | Future[FitResult]:
        """Trains the adapter on the device's own examples, without any server.

        The policy's power, battery, idle and quiet hours apply; the network and the rounds of the
        day do not. Training stops between two steps when they begin to say no, and ``predict``
        then still uses the adapter from before.

        Args:
            progress: Called after each step, in a background thread; False stops the training.
            wait: True: now, or an error. False: returns at once; training waits for the policy, and
                goes on where it stopped when the policy allows it again.

        Returns:
            What was done, or the future of it.

        Raises:
            NotNowError: The policy says no (only with ``wait``).
            DataError: The examples cannot be trained on.
            TrainingError: The loss left the finite numbers; the adapter is the one from before.
            StateError: The client is closed.
        """
        self._check_open()
        training = LocalTraining(
            learner=self._learner,
            data=self._data,
            settings=self._settings,
            gate=self._gate,
            closing=self._closing,
            recheck_s=self._recheck_s,
            allowance=self._allowance(),
            tell=self._tell,
            progress=progress,
        )
        if wait:
            return training.now(self._start)
        return self._start("rootlet-train", training.when_allowed)

    def refresh_feedback(self, path: Path | str) -> int:
        """Learns by a refreshed feedback that the bundle's publisher signed, from now on.

        Waits for a training under way. The part is kept in the state directory.

        Args:
            path: A part as ``rootlet_server.compiler.refresh`` writes it.

        Returns:
            Its version.

        Raises:
            FeedbackPartError: It is not the publisher's for this bundle, or not newer.
            StateError: The client is closed.
        """
        self._check_open()
        return self._learner.refresh_feedback(read_part(path))

    # -- the federation --------------------------------------------------------------------------

    def join(
        self,
        address: str,
        root_certificate: Path | None = None,
        node_key: NodeKey | None = None,
        secure: SecurePolicy = DEFAULT_SECURE,
        privacy: PrivacyPolicy = DEFAULT_PRIVACY,
    ) -> None:
        """Takes part in the rounds of a server whenever the policy allows it; returns at once.

        Args:
            address: ``host:port`` or ``https://host:port``; ``http://`` to this machine only.
            root_certificate: PEM file of the authority that signed the server's certificate; None
                for the system's authorities.
            node_key: Identifies the device; None for one that is kept in the state directory.
            secure: What an enrolled device insists on in secure rounds; one that is not enrolled
                takes part in none.
            privacy: What private rounds may spend of the device's privacy, over all servers.

        Raises:
            EnrolmentError: The enrolment is damaged or has expired.
            StateError: The client is closed or takes part already.
            ConfigError: Not an address, or not a certificate.
            InsecureAddressError: Plain HTTP to another machine.
            NodeKeyError: The kept key cannot be read.
            LedgerError: The ledger of what left this device is broken; nothing would be sent.
        """
        self._check_open()
        with self._lock:
            if self._membership is not None and not self._membership.left.is_set():
                raise StateError("this client takes part already: leave() first")
            key = node_key or self._state.node_key()

            def connect(sleep: Callable[[float], object]) -> FleetConnection:
                return FleetConnection(
                    address, root_certificate=root_certificate, node_key=key, sleep=sleep
                )

            _check_address(connect)
            self._membership = membership = Membership(
                Means(
                    connect=connect,
                    learner=self._learner,
                    participant=self._learner.participant(
                        self._data,
                        self._limits,
                        self._allowance(),
                        secure=SecureParticipation.open(
                            self._state.enrolment, secure, self._bundle
                        ),
                        account=PrivacyAccount(privacy, self._state.path),
                    ),
                    gate=self._gate,
                    server=address,
                    ledger=Ledger(self._state.path),
                    mailbox=self._state.mailbox,
                    tell=self._tell,
                    recheck_s=self._recheck_s,
                )
            )
            self._start("rootlet-fleet", membership.run)

    def leave(self, timeout_s: float = LEAVE_TIMEOUT_S) -> bool:
        """Stops taking part; a training under way ends between two steps.

        The device stays online until the server has read its last reply, for a minute at most.

        Args:
            timeout_s: Longest wait in seconds; 0 returns at once and leaves in the background.

        Returns:
            Whether the device has left.
        """
        membership = self._membership
        if membership is None:
            return True
        membership.leave()
        return membership.left.wait(timeout_s)

    @property
    def status(self) -> DeviceStatus:
        """A snapshot of what the device is doing."""
        membership, state = self._membership, DeviceState.IDLE
        if self._closing.is_set():
            state = DeviceState.CLOSED
        elif membership is not None:
            state = membership.state
        return DeviceStatus(
            state=state,
            examples=len(self._store),
            rounds=membership.rounds if membership else 0,
            rounds_today=self._gate.rounds_today(),
            decision=membership.decision if membership else None,
            last_error=self._last_error,
            refused=self._refused(),
            remembered=self._continual.remembered,
            drifted=self._learner.drift.drifted,
            energy_today=self._gate.energy.today(),
            bytes_up=membership.traffic.up if membership else 0,
            bytes_down=membership.traffic.down if membership else 0,
        )

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Leaves, stops training, and writes what was observed; a second call does nothing.

        Where the last reply matters, ``leave`` first: a server may take longer to read it than an
        app can wait for its end.

        Args:
            timeout_s: Longest wait for the background in seconds.

        Raises:
            StoreError: Observed examples could not be written.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        deadline = time.monotonic() + timeout_s
        self.leave(timeout_s)
        _, unfinished = futures.wait(self._running, max(0.0, deadline - time.monotonic()))
        try:
            self._store.close()
        finally:
            if unfinished:
                _log.warning("%s stays locked until its background ends", self._state.path)
            self._unlock_after(unfinished)

    # -- inside ----------------------------------------------------------------------------------

    def _unlock_after(self, unfinished: Collection[Future[Any]]) -> None:
        def unlock(_future: Future[Any] | None) -> None:
            with self._lock:
                if all(future.done() for future in unfinished):
                    self._state.close()

        for future in unfinished:
            future.add_done_callback(unlock)
        unlock(None)

    def _allowance(self) -> Allowance:
        return Allowance(limit_j=self._budget.joules_per_round, account=self._gate.energy)

    def _refused(self) -> str:
        verdict = self._learner.verdict
        return "" if verdict is None or verdict.accepted else verdict.reason

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise StateError("this client is closed: make another one on the same state_dir")

    def _start(self, name: str, work: Callable[[], T]) -> Future[T]:
        with self._lock:
            future = background.start(name, work)
            self._running = [running for running in self._running if not running.done()]
            self._running.append(future)
        return future

    def _tell(self, event: DeviceEvent) -> None:
        _log.info("%s %s", event.kind, event.detail)
        if event.kind in {"failed", "gave up"}:
            self._last_error = event.detail
            _log.warning("%s: %s", event.kind, event.detail)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                _log.exception("the app's on_event failed")


def _as_array(name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name}: not an array ({error}); give rows of equal shape") from error


def _check_address(connect: Connect) -> None:
    """Refuses an impossible address in the app's own thread; nothing is sent."""
    try:
        connect(time.sleep).close()
    except RootletError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
