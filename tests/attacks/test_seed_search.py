"""Seed search: the prompt as it is, so that a seed draws what it draws without any attack."""

import torch

from assay.attacks.seed_search import Settings, attack
from assay.testing import tiny_target


def test_a_prompt_is_asked_several_times_with_other_seeds(sd):
    """Attempts of one prompt lie side by side; each is what the model draws of the plain prompt with that seed."""
    target = tiny_target(sd)
    found = attack(sd, target, Settings(attempts=2))
    assert found.prompts == (target.prompts[0],) * 2 + (target.prompts[1],) * 2
    drawn = found.sample(sd, [1, 2, 3, 4], target)
    assert torch.equal(drawn, sd.sample(list(found.prompts), [1, 2, 3, 4], steps=target.steps, guidance=target.guidance))
    assert not torch.equal(drawn[0], drawn[1])
