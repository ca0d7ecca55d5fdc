# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import argparse
import importlib
import math
import sys

import pytest


@pytest.fixture(scope="module")
def script(repository):
    # as when it runs: it imports from the script beside it
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "benchmarks"))
        yield importlib.import_module("unept_attention")
    sys.modules.pop("unept_attention")


def test_exponent_of_figures_that_grow_with_a_power_of_pixels(script):
    # below 512 pixels a side something else may matter
    measurements = {side: {"bytes": 5 * float(side * side) ** 1.7 if side >= 512 else 1.0} for side in script.SIDES}
    assert script.exponent(measurements, "bytes") == pytest.approx(1.7)
    assert math.isnan(script.exponent({256: {"bytes": 1.0}, 512: {"bytes": 2.0}}, "bytes"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory on CPUs is read from /proc")
@pytest.mark.parametrize("form", ["sparse", "dense, eager"])
def test_measures_in_a_process_of_its_own(script, form):
    arguments = argparse.Namespace(device="cpu", threads=1, repeats=1, kernel=False)
    measurements = script.measure_apart(form, 64, arguments)
    assert measurements["seconds"] > 0
    assert measurements["bytes"] > 0
