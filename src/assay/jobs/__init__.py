"""Long work that may be interrupted: an output folder bound to a plan, and shards that are each done once."""

from assay.jobs.folder import OutFolder
from assay.jobs.shards import run

__all__ = ["OutFolder", "run"]
