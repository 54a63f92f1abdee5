"""What verbs share: the largest memory of one piece of work."""

import sys

import numpy as np
import pytest

from assay.verbs.session import peak_since, reset_peak


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can begin counting anew")
def test_memory_is_counted_from_the_reset_on():
    """200 MB that were held before do not count; 64 MB that are held for a moment after do."""
    before = np.ones(200 * 2**20, np.uint8)
    if not reset_peak():
        pytest.skip("this system does not let a process begin counting anew")
    held = peak_since()
    del before
    assert reset_peak()
    low = peak_since()
    assert low < held - 150 * 2**20
    moment = np.ones(64 * 2**20, np.uint8)
    del moment
    assert peak_since() > low + 50 * 2**20
