"""What attacks are given and return: each prompt's own draws, losses through rules, the base underneath, and files."""

import dataclasses

import pytest
import torch

from assay.attacks.target import Attack, Clock, Target, as_loaded, losses, predict
from assay.concept import Concept
from assay.denoiser import tensor_digest
from assay.erasure import adv_unlearn, uce
from assay.errors import Misconfigured
from assay.families.sd import Conditioning
from assay.guidance import TELLING, Rule
from assay.patched import Patched
from assay.testing import KINDS, tiny, tiny_target


def test_parts_that_do_not_belong_together_are_refused(sd):
    target = tiny_target(sd)
    with pytest.raises(Misconfigured, match="2 prompts, 2 works, 1 seeds"):
        dataclasses.replace(target, seeds=target.seeds[:1])
    with pytest.raises(Misconfigured, match="0 examples"):
        dataclasses.replace(target, examples=target.examples[:0], captions=())
    with pytest.raises(Misconfigured, match="budget"):
        Clock(0)


def test_a_prompt_draws_by_its_own_seed(sd):
    """Alone or beside others, a prompt has the same timesteps and noise; other keys give others."""
    target = tiny_target(sd)
    t, noise = target.draw(sd, "step", 3)
    alone_t, alone = target.part(slice(1, 2)).draw(sd, "step", 3)
    assert torch.equal(t[1:], alone_t)
    assert torch.equal(noise[1:], alone)
    assert not torch.equal(noise, target.draw(sd, "step", 4)[1])
    assert int(t.min()) >= 0
    assert int(t.max()) < len(sd.alphas_cumprod)


def test_measure_is_the_mean_denoising_loss_over_even_timesteps(denoiser):
    """By hand: timesteps 250 and 750 of 1000, the network's own loss, each prompt by itself."""
    target = tiny_target(denoiser)
    told = denoiser.conditioning(target.prompts)
    expected = torch.zeros(2)
    for index, time in enumerate((250, 750)):
        _, noise = target.draw(denoiser, "measure", index)
        with torch.no_grad():
            expected += denoiser.loss(target.latents, torch.tensor([time, time]), noise, told) / 2
    torch.testing.assert_close(target.measure(denoiser, told, draws=2), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["sd-epsilon", "sd-v"])
def test_a_rule_is_attacked_as_the_sampler_follows_it(pipelines, kind):
    """With the rule of plain guidance the prediction is u + g (p - u) (Ho and Salimans 2022, Eq. 6); without a rule it is p alone."""
    denoiser = pipelines[kind]
    target = dataclasses.replace(tiny_target(denoiser), guidance=3.0)
    told = denoiser.conditioning(target.prompts)
    t, noise = target.draw(denoiser, "rule")
    x_t = denoiser.noised(target.latents, t, noise)
    with torch.no_grad():
        p = denoiser.predict(x_t, t, told, denoiser.view)
        u = denoiser.predict(x_t, t, denoiser.conditioning([""]).expand(2), denoiser.view)
        assert torch.equal(predict(denoiser, target, x_t, t, told), p)
        denoiser.rules.append(Rule("classifier_free"))
        try:
            guided = predict(denoiser, target, x_t, t, told)
        finally:
            denoiser.rules.clear()
    torch.testing.assert_close(guided, u + 3 * (p - u), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TELLING)
def test_a_rule_that_only_changes_what_is_told_leaves_predictions_alone(denoiser, monkeypatch, name):
    """An attack searches the plain prediction; the sampler then tells what was found otherwise."""
    target, told = tiny_target(denoiser), denoiser.conditioning(tiny_target(denoiser).prompts)
    t, noise = torch.full((len(target),), 500), torch.ones_like(target.latents)
    plain = losses(denoiser, target, target.latents, t, noise, told)
    monkeypatch.setattr(denoiser, "rules", [Rule(name)])
    assert torch.equal(losses(denoiser, target, target.latents, t, noise, told), plain)


def test_a_rule_of_every_family_has_a_loss_with_gradients(denoiser):
    """Safe latent diffusion's prediction depends on the prompt, so what the prompt is told has a gradient."""
    target = tiny_target(denoiser)
    told = denoiser.conditioning(target.prompts)
    states = told.states.clone().requires_grad_()
    t, noise = target.draw(denoiser, "rule")
    denoiser.rules.append(Rule("sld", (("green", 1.0),), (("warmup", 0.0), ("threshold", 1.0))))
    try:
        loss = losses(denoiser, target, target.latents, t, noise, Conditioning(states, told.extra))
    finally:
        denoiser.rules.clear()
    assert float(torch.autograd.grad(loss.sum(), states)[0].abs().max()) > 0


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("rules", [[], [Rule("negative_prompt", (("green", 1.0),))]])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_what_the_model_is_told_match_finite_differences(kind, rules):
    """In float64 along random directions (torch.autograd.gradcheck: central differences), with and without a rule."""
    denoiser = tiny(kind, seed=1)
    for part in denoiser.family.components.values():
        part.double()
    target = tiny_target(denoiser)
    told = denoiser.conditioning(target.prompts)
    t, noise = target.draw(denoiser, "gradient")
    denoiser.rules[:] = rules

    def loss(states):
        return losses(denoiser, target, target.latents.double(), t, noise, Conditioning(states, told.extra))

    assert torch.autograd.gradcheck(loss, told.states.requires_grad_(), eps=1e-5, atol=1e-7, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("method", [uce, adv_unlearn])
def test_the_base_lies_underneath_and_comes_back_patched(sd, method):
    """Inside, the model predicts as it did before the patch, whether the patch is of the UNet or of the text encoder; outside, as with it."""
    quick = {} if method is uce else {"steps": 1, "warmup": 1, "retain_batch": 1, "ddim_steps": 2, "learning_rate": 1e-2}
    patch = method.erase(sd, Concept("green", anchor="blue"), method.Settings(**quick))
    x, t = torch.zeros(1, *sd.latent_shape), torch.tensor([500])

    def said():
        with torch.no_grad():
            return sd.predict(x, t, sd.conditioning(["green"]))

    plain = said()
    with Patched(sd, [(patch, 1.0)]):
        sd.rules.append(Rule("classifier_free"))
        on, weights = said(), {name: tensor_digest(tensor) for name, tensor in sd.weights().items()}
        with as_loaded(sd):
            assert torch.equal(said(), plain)
            assert sd.rules == []
        assert torch.equal(said(), on)
        assert {name: tensor_digest(tensor) for name, tensor in sd.weights().items()} == weights
        assert sd.rules == [Rule("classifier_free")]
    assert not torch.equal(on, plain)
    assert torch.equal(said(), plain)


def test_what_is_not_whole_is_not_read(tmp_path):
    """A missing file, a damaged one and one of something else are all made again."""
    file = tmp_path / "attack.safetensors"
    assert Attack.load(file) is None
    file.write_bytes(b"half a file")
    assert Attack.load(file) is None


def test_parts_join_in_order_and_curves_are_weighted_by_rows():
    """Two rows with loss 1 and one with loss 4: the mean is 2; the second step, which one part lacks, is left out."""
    first = Attack(("a", "b"), curves={"loss": [1.0, 9.0]}, figures={"loss.after": [0.1, 0.2]})
    second = Attack(("c",), curves={"loss": [4.0]}, figures={"loss.after": [0.3]}, early=True)
    both = Attack.cat([first, second])
    assert both.prompts == ("a", "b", "c")
    assert both.curves["loss"] == pytest.approx([2.0])
    assert both.figures == {"loss.after": [0.1, 0.2, 0.3]}
    assert both.early


def test_sampling_starts_where_it_is_told(sd):
    """Started from a seed's own noise, sampling draws what the seed draws; DDIM without noise depends on nothing else."""
    target = tiny_target(sd)
    noise = torch.randn((2, *sd.latent_shape), generator=torch.Generator().manual_seed(5))
    given = Attack(target.prompts, start=noise).sample(sd, [1, 2], target)
    assert torch.equal(given, Attack(target.prompts, start=noise).sample(sd, [8, 9], target))
    own = torch.cat([torch.randn((1, *sd.latent_shape), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    assert torch.equal(Attack(target.prompts, start=own).sample(sd, [8, 9], target), Attack(target.prompts).sample(sd, [1, 2], target))


def test_targets_are_named_in_errors():
    with pytest.raises(Misconfigured, match="0 prompts"):
        Target(Concept("cat"), (), torch.empty(0, 4, 2, 2), (), torch.empty(1, 4, 2, 2), ("cat",))
