"""Rounds with differential privacy: charged before they begin, and noisy where noise is due."""

from dataclasses import replace

from rootlet_server.federation.accepted import Accepted
from rootlet_server.federation.checkpoint import RoundCheckpoint
from rootlet_server.federation.exchange import Exchange
from rootlet_server.federation.gathering import Gathered, Gathering
from rootlet_server.federation.plan import FederationPlan
from rootlet_server.federation.privacy import FederationAccount, noisy_mean


class PrivateRounds:
    """Gathers as another does, within a budget.

    Args:
        gathering: Gathers the answers.
        plan: With privacy.
        account: Charged.
    """

    def __init__(
        self, gathering: Gathering, plan: FederationPlan, account: FederationAccount
    ) -> None:
        self._gathering, self._plan, self._account = gathering, plan, account

    def lifetime_s(self, plan: FederationPlan) -> float:
        """As the other's."""
        return self._gathering.lifetime_s(plan)

    def gather(self, exchange: Exchange, before: RoundCheckpoint) -> Gathered:
        """Charges a round, and gathers it.

        Raises:
            BudgetSpentError: it would exceed the budget; nobody was asked.
        """
        plan, privacy = self._plan, self._plan.privacy
        if privacy is None:
            raise AssertionError("unreachable: private rounds have a plan with privacy")
        bundle = f"{plan.bundle} {plan.bundle_version}"
        told = self._account.begin(before.round + 1, plan.epochs, bundle)
        gathered = self._gathering.gather(exchange, before)
        if not gathered.accepted:
            return gathered
        if privacy.unit == "device" and plan.secure is None:
            updates = [item.update for item in gathered.accepted if item.update is not None]
            noisy = noisy_mean(before.adapter, updates, privacy)
            gathered = replace(gathered, accepted=[Accepted(0, {}, noisy)])
            told = f"central noise, {told}"
        shown = f"{gathered.protection}, {told}" if gathered.protection else told
        return replace(gathered, protection=shown, epsilon=self._account.epsilon())
