"""What a device answers to private and secure requests, and what it refuses."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rootlet.data import ArrayData
from rootlet.fleet.envelope import FleetRequest
from rootlet.participant import Participant
from rootlet.privacy_terms import PrivacyAccount, PrivacyPolicy, PrivacyTerms
from rootlet.protocol import EvaluateRequest, TrainRequest
from rootlet.secagg.enrolment import Certificate, EnrolmentFolder
from rootlet.secagg.messages import SECURE, StageMessage, by_place
from rootlet.secagg.participation import SecureParticipation
from rootlet.secagg.plan import NoisePlan, SecurePlan
from rootlet.secagg.policy import SecurePolicy
from rootlet.secagg.update import flat
from rootlet_runtime import Bundle, Trainer

BY_DEVICE = PrivacyTerms(unit="device", max_norm=0.01, noise_multiplier=2.0, sample_rate=1.0)
BY_EXAMPLE = replace(BY_DEVICE, unit="example", sample_rate=0.5)
NOISE = NoisePlan(clip_norm=1.0, scale_bits=8, unit_inverse=100.0, honest=4)


@pytest.fixture
def bundle(mlp_bundle):
    with Bundle.load(mlp_bundle.path, trusted_keys=mlp_bundle.trusted_keys) as opened:
        yield opened


@pytest.fixture
def device(mlp_bundle, bundle, tmp_path):
    """`device(policy, secure)`: one with forty examples; enrolled where `secure` is a policy."""

    def make(privacy=None, secure=None):
        rounds = None
        if secure is not None:
            authority, folder = Ed25519PrivateKey.generate(), EnrolmentFolder(tmp_path / "enrolled")
            card = Certificate.issue(
                authority, folder.device_id(), name="d",
                expires=datetime.now(UTC) + timedelta(days=1),
            )  # fmt: skip
            folder.install(card.raw, authority.public_key())
            rounds = SecureParticipation.open(folder.path, secure, bundle)
        return Participant(
            Trainer(bundle),
            ArrayData.split((mlp_bundle.x[:40], mlp_bundle.y[:40])),
            secure=rounds,
            account=PrivacyAccount(privacy or PrivacyPolicy()),
        )

    return make


def train(bundle, *more):
    asked = TrainRequest(
        adapter=bundle.initial_adapter(), bundle=bundle.manifest.name, bundle_version=1,
        manifest_sha256=bundle.manifest_sha256, round=1, epochs=1, batch_size=8, learning_rate=0.01,
    )  # fmt: skip
    records = asked.to_records()
    for each in more:
        records |= each
    return FleetRequest(1, "1", "train", records, 0)


def plan(bundle, **changes):
    given = {
        "round_id": os.urandom(16).hex(), "run": "1", "manifest_sha256": bundle.manifest_sha256,
        "values": flat(bundle.initial_adapter()).size, "value_bits": 12, "modulus_bits": 32,
        "bound": 1.0, "devices": 6, "min_live": 5, "degree": 5,
    }  # fmt: skip
    return SecurePlan(**(given | changes))


def begun(device, round_plan):
    """The device has advertised: the upload's record for its round."""
    asked = StageMessage(stage="advertise", round_id="", values={"plan": round_plan.raw})
    answer = device.answer(FleetRequest(1, "1", "query", asked.to_records(), 0))
    assert answer.error == ""
    stage = StageMessage(
        stage="upload", round_id=round_plan.round_id, values=by_place("shares", {})
    )
    return stage.to_records()


def test_by_device_a_clipped_adapter_and_nothing_else_leaves(device, bundle):
    participant = device()
    answer = participant.answer(train(bundle, BY_DEVICE.to_records()))
    assert answer.error == ""
    assert set(answer.records) == {"arrays", "metrics"}
    assert set(answer.records["metrics"]) == {"bytes_up"}
    moved = flat(answer.records["arrays"]) - flat(bundle.initial_adapter())
    assert np.linalg.norm(moved) == pytest.approx(0.01, rel=1e-3)
    spent = participant.last_spent
    assert (spent.unit, spent.noise_multiplier, spent.steps) == ("device", 2.0, 1)
    participant.answer(train(bundle))
    assert participant.last_spent is None


def test_a_budget_that_is_spent_is_refused_before_anything_is_trained(device, bundle):
    participant = device(PrivacyPolicy(max_epsilon=0.5))
    answer = participant.answer(train(bundle, BY_DEVICE.to_records()))
    assert "its budget is spent" in answer.error
    assert participant.last_fit is None


def test_two_units_at_once_are_refused_in_a_secure_round(device, bundle):
    participant = device(secure=SecurePolicy())
    upload = begun(participant, plan(bundle))
    answer = participant.answer(train(bundle, upload, BY_DEVICE.to_records()))
    assert "one account cannot hold both" in answer.error
    upload = begun(participant, plan(bundle, noise=NOISE))
    answer = participant.answer(train(bundle, upload, BY_EXAMPLE.to_records()))
    assert "one account cannot hold both" in answer.error
    assert participant.last_spent is None


def test_an_enrolled_device_answers_nothing_in_clear_unless_its_app_allows_it(device, bundle):
    participant = device(secure=SecurePolicy())
    assert "by secure aggregation only" in participant.answer(train(bundle)).error
    asked = EvaluateRequest(
        adapter=bundle.initial_adapter(), bundle=bundle.manifest.name, bundle_version=1,
        manifest_sha256=bundle.manifest_sha256, round=1,
    )  # fmt: skip
    request = FleetRequest(1, "1", "evaluate", asked.to_records(), 0)
    assert "its figures by secure aggregation only" in participant.answer(request).error
    assert device(secure=SecurePolicy(required=False)).answer(request).error == ""


def test_a_stage_of_a_round_that_is_not_under_way_is_refused(device, bundle):
    stage = StageMessage(stage="upload", round_id="0" * 32, values=by_place("shares", {}))
    participant = device(secure=SecurePolicy())
    answer = participant.answer(train(bundle, stage.to_records()))
    assert "is not under way here" in answer.error
    assert participant.last_fit is None
    assert "not enrolled" in device().answer(train(bundle, stage.to_records())).error
    bad = {SECURE: {**stage.to_records()[SECURE], "protocol": 2}}
    assert "same rootlet version" in participant.answer(train(bundle, bad)).error
