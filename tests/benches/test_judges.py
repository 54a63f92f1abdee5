import numpy as np
import pytest

from assay.benches.judges import measure
from assay.evaluation.centroid import CentroidJudge
from assay.judge import Verdict
from assay.testing import tiny_works


class Oracle:
    """Names everything rightly, but a share of the styles."""

    name = "oracle"
    digest = "0" * 64

    def features(self, images):
        return np.ones((len(images), 1), np.float32)

    def chance(self, head, names=None):
        return 0.5

    def score(self, images, titles, styles):
        del images
        said = {}
        for head, truth in (("title", titles), ("group", titles), ("style", styles)):
            right = np.arange(len(truth)) % 4 != 0 if head == "style" else np.ones(len(truth), bool)
            named = np.where(right, np.array(truth, object), "another")
            said[head] = Verdict(np.ones(len(truth), bool), right, right, right * 1.0, named, np.full(len(truth), 0.75))
        return said


def test_what_is_known_of_a_judge_comes_out():
    works = tiny_works(size=64)
    found = measure({"oracle": Oracle(), "centroid": CentroidJudge(works)}, works, families={"one": f"title={works.column('title')[0]}"})
    value = {metric.name: metric for metric in found["metrics"]}
    # Three styles of four are named rightly with a confidence of 0.75: accuracy 0.75, calibration error 0 in bins that hold whole fours.
    assert value["oracle.style"].value == pytest.approx(0.75, abs=0.02)
    assert value["oracle.title"].value == 1
    assert value["oracle.title.calibration_error"].value == pytest.approx(0.25)
    # An oracle does not look at the picture, so that nothing that happens to it changes a naming.
    sturdy = next(table for table in found["tables"] if "unchanged" in table.title)
    assert all(row[1].endswith("100% unchanged") for row in sturdy.rows)
    family = next(table for table in found["tables"] if "family" in table.title)
    assert family.rows[0][3].startswith("100%")
    assert {metric.name for metric in found["metrics"] if metric.name.startswith("agreement.")} == {
        f"agreement.{head}.real_works" for head in ("title", "group", "style")
    }
    assert value["agreement.style.real_works"].low <= value["agreement.style.real_works"].value <= value["agreement.style.real_works"].high
