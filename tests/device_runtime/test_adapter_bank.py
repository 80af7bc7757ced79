from pathlib import Path

import numpy as np
import pytest

from rootlet_runtime import TensorSpec
from rootlet_runtime.adapter_bank import AdapterBank
from rootlet_runtime.array_files import ArrayFiles
from rootlet_runtime.errors import AdapterError

SPECS = (TensorSpec(name="m.lora_B", dtype="float32", shape=(2,)),)


def adapter(*values: float) -> dict[str, np.ndarray]:
    return {"m.lora_B": np.array(values, np.float32)}


@pytest.fixture
def bank(tmp_path: Path) -> AdapterBank:
    return AdapterBank(ArrayFiles(tmp_path / "bank"), SPECS, limit=2)


def test_each_task_has_its_own_adapter_also_after_a_restart(
    bank: AdapterBank, tmp_path: Path
) -> None:
    bank.keep("kitchen", adapter(1, 2))
    bank.keep("garden", adapter(3, 4))
    bank.keep("kitchen", adapter(5, 6))
    again = AdapterBank(ArrayFiles(tmp_path / "bank"), SPECS)
    assert again.tasks() == ["garden", "kitchen"]
    np.testing.assert_array_equal(again.adapter("kitchen")["m.lora_B"], [5, 6])


def test_the_average_is_the_mean_of_all_that_were_added(bank: AdapterBank) -> None:
    with pytest.raises(AdapterError, match="the average is empty"):
        bank.average()
    for values in ((1, 10), (2, 20), (6, 60)):
        bank.add_to_average(adapter(*values))
    np.testing.assert_allclose(bank.average()["m.lora_B"], [3, 30])
    assert bank.tasks() == []


def test_an_unknown_task_takes_the_adapter_of_the_lowest_loss(bank: AdapterBank) -> None:
    with pytest.raises(AdapterError, match="the bank holds no adapter"):
        bank.best(lambda _: 0.0)
    bank.keep("a", adapter(1, 0))
    bank.keep("b", adapter(5, 0))
    task, chosen = bank.best(lambda arrays: abs(float(arrays["m.lora_B"][0]) - 4))
    assert task == "b"
    np.testing.assert_array_equal(chosen["m.lora_B"], [5, 0])


def test_the_bank_is_bounded_and_refuses_what_does_not_fit(bank: AdapterBank) -> None:
    bank.keep("a", adapter(1, 1))
    bank.keep("b", adapter(1, 1))
    with pytest.raises(AdapterError, match=r"holds 2 adapters, its limit; remove one of a, b"):
        bank.keep("c", adapter(1, 1))
    bank.remove("a")
    bank.remove("a")
    bank.keep("c", adapter(1, 1))
    with pytest.raises(AdapterError, match="there are b, c"):
        bank.adapter("a")
    with pytest.raises(AdapterError, match="does not match"):
        bank.keep("../c", adapter(1, 1))
    with pytest.raises(AdapterError, match="shape"):
        bank.keep("b", {"m.lora_B": np.zeros(3, np.float32)})
