"""Random prompts: as many draws as asked for, from the filtered vocabulary alone."""

import torch

from assay.attacks.random_prompts import Settings, attack
from assay.attacks.search import vocabulary
from assay.testing import tiny_target


def test_tokens_are_drawn_from_the_vocabulary(sd):
    """Every attempt has its own tokens; in many draws every allowed token turns up in its place, and no other."""
    target = tiny_target(sd)
    found = attack(sd, target, Settings(tokens=1, attempts=400))
    assert len(found.prompts) == 800
    assert len({row.numpy().tobytes() for row in found.conditioning.states}) > 300
    words = vocabulary(sd, target)
    single = {sd.family.encoders[0][0].decode([index]) for index in words.ids.tolist()}
    starts = {text.removesuffix(target.prompts[0]).strip() for text in found.prompts[:400]}
    assert starts <= {text.strip() for text in single} | {""}


def test_the_prompt_stays_behind_the_tokens(sd):
    """What is told differs from the prompt's own encoding, and every attempt from the others."""
    target = tiny_target(sd)
    found = attack(sd, target, Settings(tokens=2, attempts=2))
    own = sd.conditioning(target.prompts).states
    assert all(not torch.equal(found.conditioning.states[row], own[row // 2]) for row in range(4))
    assert all(text.endswith("green circle") or "green" in text for text in found.prompts)
