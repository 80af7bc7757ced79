"""Bundles that the compiler made, on the LiteRT runtime of this environment.

Run by ``.ci/run`` where tflite-runtime 2.14 and numpy below 2 are installed, and no torch. The
bundles are those that ``tests/litert_export`` left in ``ROOTLET_LITERT_BUNDLES``.
"""

import os
import runpy
from pathlib import Path

import pytest

from rootlet_runtime import Bundle

COMPARE = runpy.run_path(str(Path(__file__).parents[1] / "litert" / "conftest.py"))["disagreement"]
BUNDLES = sorted(Path(os.environ["ROOTLET_LITERT_BUNDLES"]).glob("*.rootlet"))


def test_there_are_bundles():
    assert len(BUNDLES) == 6


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.stem)
def test_ten_steps_agree(path):
    bundle = Bundle.load(path, trusted_keys=[], allow_unsigned=True)
    adam = bundle.manifest.optimizer == "adam"
    found = COMPARE(bundle, 0.005 if adam else 0.05)
    tolerance = 1e-4 if adam else 1e-5
    assert max(found.loss, found.adapter, found.evaluate, found.predict) < tolerance
    assert found.optimizer < 2 * tolerance
