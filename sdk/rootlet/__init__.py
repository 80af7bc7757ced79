"""What an app embeds to learn on a device: examples in, predictions out, rounds beside the app."""

from rootlet.client import DeviceClient
from rootlet.conditions import DeviceConditions, read_conditions
from rootlet.energy import EnergyBudget, EnergySpent
from rootlet.fleet.keys import NodeKey
from rootlet.policy import Decision, ParticipationPolicy, decide
from rootlet.privacy_terms import PrivacyPolicy
from rootlet.secagg.policy import SecurePolicy
from rootlet.status import DeviceEvent, DeviceState, DeviceStatus
from rootlet.store import ExampleStore
from rootlet.train_config import TrainConfig

__all__ = [
    "Decision",
    "DeviceClient",
    "DeviceConditions",
    "DeviceEvent",
    "DeviceState",
    "DeviceStatus",
    "EnergyBudget",
    "EnergySpent",
    "ExampleStore",
    "NodeKey",
    "ParticipationPolicy",
    "PrivacyPolicy",
    "SecurePolicy",
    "TrainConfig",
    "decide",
    "read_conditions",
]
