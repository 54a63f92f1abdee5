"""What rules do to what the model is told: nothing at no strength, bit for bit; by seed alone; and the magnitude falls as far as it is asked to."""

from dataclasses import replace

import pytest
import torch

from assay.families.sd import Conditioning
from assay.guidance import Rule
from assay.noise import derive, normal
from assay.retelling import lowered, magnitudes, scrambled, under_nothing
from assay.testing import tiny

PROMPTS, SEEDS = ["cat, twemoji style", "dog"], [3, 4]


@pytest.fixture(scope="module", params=["sd-epsilon", "sdxl"])
def denoiser(request):
    return tiny(request.param)


def sample(denoiser, rule=None, prompts=PROMPTS, seeds=SEEDS, **options):
    denoiser.rules[:] = [] if rule is None else [rule]
    try:
        return denoiser.sample(prompts, seeds, steps=2, **options)
    finally:
        denoiser.rules[:] = []


@pytest.mark.parametrize(
    "rule",
    [
        Rule("embedding_noise", settings=(("scale", 0.0),)),
        Rule("random_tokens", settings=(("probability", 0.0), ("inserted", 0.0))),
        Rule("lower_magnitude", settings=(("strength", 0.0),)),
        Rule("lower_magnitude", settings=(("target", 1e9),)),
    ],
)
def test_no_strength_is_plain_sampling_bit_for_bit(denoiser, rule):
    assert torch.equal(sample(denoiser, rule), sample(denoiser))


@pytest.mark.parametrize("name", ["embedding_noise", "random_tokens"])
def test_what_is_drawn_depends_on_the_seed_alone(denoiser, name):
    rule = Rule(name)
    both = sample(denoiser, rule)
    assert torch.equal(both, sample(denoiser, rule))
    assert not torch.equal(both, sample(denoiser))
    # One image alone is summed in another order.
    torch.testing.assert_close(sample(denoiser, rule, PROMPTS[1:], SEEDS[1:]), both[1:], rtol=0, atol=1e-4)


def test_noise_is_added_to_the_states(denoiser):
    told = denoiser.conditioning(PROMPTS)
    noise = normal(told.states.shape[1:], [derive(seed, "embedding noise") for seed in SEEDS])
    by_hand = sample(denoiser, prompts=Conditioning(told.states + 0.3 * noise, told.extra))
    assert torch.equal(sample(denoiser, Rule("embedding_noise", settings=(("scale", 0.3),))), by_hand)


def test_tokens_stay_where_nothing_is_to_be_changed_and_are_as_many_as_asked(denoiser):
    plain = denoiser.family.tokenize(["cat"])
    assert all(torch.equal(*pair) for pair in zip(scrambled(denoiser, plain, 1, 0.0, 0), plain, strict=True))
    changed, again = (scrambled(denoiser, plain, 1, 0.0, 3) for _ in range(2))
    for (coder, _), before, after, same in zip(denoiser.family.encoders, plain, changed, again, strict=True):
        assert after.shape == before.shape
        assert torch.equal(after, same)
        end, moved = before[0].tolist().index(coder.eos_token_id), after[0].tolist().index(coder.eos_token_id)
        assert moved == end + 3
        left = iter(after[0, 1:moved].tolist())
        assert all(token in left for token in before[0, 1:end].tolist())  # the prompt's own tokens remain, in their order
        assert (after[0, moved + 1 :] == before[0, -1]).all()


def test_certain_replacement_leaves_no_place_for_chance_and_long_prompts_are_cut(denoiser):
    plain = denoiser.family.tokenize(["a" * 100])
    for (coder, _), before, after in zip(denoiser.family.encoders, plain, scrambled(denoiser, plain, 5, 1.0, 9), strict=True):
        assert after.shape == before.shape
        assert after[0, -1] == coder.eos_token_id
        assert not set(after[0, 1:-1].tolist()) & set(coder.all_special_ids)


def test_the_magnitude_falls_and_stops_at_its_target(denoiser):
    told, x, t = denoiser.conditioning(PROMPTS), normal(denoiser.latent_shape, SEEDS), 981
    empty = under_nothing(denoiser, x, t)
    before = magnitudes(denoiser, told, x, t, empty)
    target = 0.9 * float(before.min())
    moved = lowered(denoiser, told, x, t, target, 0.05, 40)
    assert (magnitudes(denoiser, moved, x, t, empty) <= target).all()
    assert torch.equal(moved.states[:, 0], told.states[:, 0])  # the begin token stays
    above = lowered(denoiser, told, x, t, float(before.mean()), 0.05, 1).states
    changed = (above != told.states).flatten(1).any(1)
    assert changed.tolist() == (before > before.mean()).tolist()


def test_embeddings_of_an_attack_are_told_otherwise_too(denoiser):
    given = replace(denoiser.conditioning(PROMPTS))
    assert not torch.equal(sample(denoiser, Rule("embedding_noise"), prompts=given), sample(denoiser, prompts=given))
    assert torch.equal(sample(denoiser, Rule("random_tokens"), prompts=given), sample(denoiser, Rule("embedding_noise", settings=(("scale", 0.0),))))
