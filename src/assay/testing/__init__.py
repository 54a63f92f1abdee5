"""For tests of assay and of what is built on it: tiny real pipelines made in code, works to go with them, and contract tests."""

from assay.testing.pipelines import KINDS, save_tiny, tiny
from assay.testing.worlds import tiny_target, tiny_works

__all__ = ["KINDS", "save_tiny", "tiny", "tiny_target", "tiny_works"]
