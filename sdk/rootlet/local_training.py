"""Training for oneself: on the device's own examples, under the policy, without any server."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from rootlet.energy_account import Allowance
from rootlet.errors import NotNowError, StateError
from rootlet.gate import Gate
from rootlet.learner import Learner
from rootlet.participant import DataSource
from rootlet.status import DeviceEvent, kept, rolled_back
from rootlet_runtime.fit import FitResult, Progress
from rootlet_runtime.manifest import TrainingDefaults

Start = Callable[[str, Callable[[], FitResult]], Future[FitResult]]


@dataclass(kw_only=True)
class LocalTraining:
    """One local training.

    Attributes:
        learner: Holds the adapter.
        data: The device's examples; taken once, so that a stopped training can go on.
        settings: Epochs, batch size and learning rate.
        gate: Says when.
        closing: Set when the app ends.
        recheck_s: Time between two looks at the policy while it says no, in seconds.
        allowance: What it may spend, and the account that it is charged to.
        tell: Hears that the guard went back to an earlier adapter.
        progress: The app's, called after each step.
    """

    learner: Learner
    data: DataSource
    settings: TrainingDefaults
    gate: Gate
    closing: threading.Event
    recheck_s: float
    allowance: Allowance
    tell: Callable[[DeviceEvent], None]
    progress: Progress | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event, init=False)
    _refused: bool = field(default=False, init=False)

    def now(self, start: Start) -> FitResult:
        """Trains beside the calling thread, and waits for it.

        Args:
            start: Runs a named function in the background.

        Raises:
            NotNowError: The policy says no, or begins to before the end.
        """
        self._check()
        try:
            result = start("rootlet-train", self._fit).result()
        finally:
            self._cancelled.set()  # an interrupted wait ends the training too
        if self._refused:
            self._check()
        return result

    def when_allowed(self) -> FitResult:
        """Trains as soon as and as long as the policy allows it, until it is done.

        Raises:
            StateError: The client was closed before that.
        """
        while True:
            while not self.gate.decide_local().allowed:
                self.closing.wait(self.recheck_s)
                if self.closing.is_set():
                    raise StateError("the client was closed before the policy allowed to train")
            result = self._fit()
            if not self._refused:
                return result

    def _fit(self) -> FitResult:
        self._refused = False
        examples, held_out = self.data.train(), self.data.holdout()
        result = self.learner.fit(
            examples,
            self.settings,
            may_go_on=self._may_go_on,
            progress=self.progress,
            held_out=None if held_out is None or len(held_out[0]) == 0 else held_out,
            allowance=self.allowance,
        )
        if result.rolled_back:
            self.tell(rolled_back(result))
        if result.verdict is not None and not result.verdict.accepted:
            self.tell(kept(result.verdict))
        return result

    def _may_go_on(self) -> bool:
        if self._cancelled.is_set() or self.closing.is_set():
            return False
        self._refused = not self.gate.decide_local().allowed
        return not self._refused

    def _check(self) -> None:
        decision = self.gate.decide_local()
        if not decision.allowed:
            raise NotNowError(
                f"the policy says not now: {', '.join(decision.reasons)}: call again later, use "
                "train_locally(wait=False), which waits for it, or give the client another policy"
            )
