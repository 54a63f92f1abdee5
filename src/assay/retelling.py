"""Sampling rules that change what the model is told of a prompt before the first step, against copies of training images.

- `random_tokens` (Somepalli et al. 2023, Sec. 6): tokens of the prompt are exchanged for random ones, and random ones put in between.
- `embedding_noise` (Somepalli et al. 2023, Sec. 6): e + scale x noise, e the encoder's states.
- `lower_magnitude` (Wen et al. 2024, Sec. 4): e becomes argmin | eps(x_T, e) - eps(x_T, empty) |_2 by a few steps of AdamW, left off at `target`;
  the state of the begin token stays.

What is drawn depends on the image's seed alone. A rule acts on whatever the sampler is told, embeddings found by an attack too; except
`random_tokens`, for which there must be words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from assay.families.sd import Conditioning
from assay.noise import derive, generator, normal

if TYPE_CHECKING:
    from assay.denoiser import Denoiser


def told(denoiser: Denoiser, prompts: Sequence[str] | Conditioning, seeds: Sequence[int]) -> Conditioning:
    """Return what the prompts of a batch are encoded to, one seed each: as they are, or with random tokens where the rule says so."""
    if isinstance(prompts, Conditioning):
        return prompts
    rule = denoiser.rules[-1] if denoiser.rules else None
    if rule is None or rule.name != "random_tokens":
        return denoiser.conditioning(prompts)
    numbers = rule.numbers
    rows = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        plain = denoiser.family.tokenize([prompt])
        mixed = scrambled(denoiser, plain, seed, numbers["probability"], int(numbers["inserted"]))
        same = all(torch.equal(one, other) for one, other in zip(plain, mixed, strict=True))
        rows.append(denoiser.conditioning([prompt]) if same else denoiser.family.encode(mixed))
    return Conditioning.cat(rows)


def retold(denoiser: Denoiser, conditioning: Conditioning, x: torch.Tensor, seeds: Sequence[int], t: int) -> Conditioning:
    """Return what the sampler is to be told instead, by the rule.

    Args:
        denoiser: the model, with its rules.
        conditioning: what it would be told, b rows.
        x: what sampling starts from: (b, c, h, w).
        seeds: of the images, b.
        t: the first timestep.
    """
    rule = denoiser.rules[-1] if denoiser.rules else None
    if rule is not None and rule.name == "embedding_noise" and (scale := rule.numbers["scale"]):
        noise = normal(conditioning.states.shape[1:], [derive(seed, "embedding noise") for seed in seeds])
        return Conditioning(conditioning.states + scale * noise.to(conditioning.states), conditioning.extra)
    if rule is not None and rule.name == "lower_magnitude" and rule.numbers["strength"]:
        numbers = rule.numbers
        moved = lowered(denoiser, conditioning, x, t, numbers["target"], numbers["learning_rate"], int(numbers["steps"]))
        way = numbers["strength"] * (moved.states.float() - conditioning.states.float())
        return Conditioning((conditioning.states.float() + way).to(conditioning.states.dtype), conditioning.extra)
    return conditioning


def scrambled(denoiser: Denoiser, ids: Sequence[torch.Tensor], seed: int, probability: float, inserted: int) -> list[torch.Tensor]:
    """Return the token ids (1, tokens) of a prompt with random tokens among them, for each text encoder.

    Args:
        denoiser: whose tokenizers they are.
        ids: from `tokenize`, one prompt.
        seed: of every draw.
        probability: with which a token is exchanged for a random one.
        inserted: random tokens put in at random places; what does not fit falls off the end.
    """
    mixed = []
    for number, ((coder, _), row) in enumerate(zip(denoiser.family.encoders, ids, strict=True)):
        draws = generator(seed, "random tokens", number)
        first, *rest = row[0].tolist()
        end = rest.index(coder.eos_token_id)
        special = set(coder.all_special_ids)
        allowed = [token for token in range(len(coder)) if token not in special]
        body = []
        for token in rest[:end]:
            coin, other = float(torch.rand((), generator=draws)), int(torch.randint(len(allowed), (), generator=draws))
            body.append(allowed[other] if coin < probability else token)
        for _ in range(inserted):
            place, other = int(torch.randint(len(body) + 1, (), generator=draws)), int(torch.randint(len(allowed), (), generator=draws))
            body.insert(place, allowed[other])
        body = body[: len(rest) - 1]
        padding = row[0, -1:].tolist() if end + 1 < len(rest) else [coder.pad_token_id]
        mixed.append(torch.tensor([[first, *body, coder.eos_token_id, *padding * (len(rest) - 1 - len(body))]], device=row.device))
    return mixed


@torch.no_grad()
def under_nothing(denoiser: Denoiser, x: torch.Tensor, t: int) -> torch.Tensor:
    """Return what the network predicts under the empty prompt at one timestep, in its own view: (b, c, h, w)."""
    times = torch.full((len(x),), t, device=denoiser.device)
    return denoiser.predict(x, times, denoiser.conditioning([""]).expand(len(x)), denoiser.view)


def magnitudes(denoiser: Denoiser, conditioning: Conditioning, x: torch.Tensor, t: int, empty: torch.Tensor) -> torch.Tensor:
    """Return | prediction under the conditioning - `empty` |_2 at one timestep, in the network's own view: (b,)."""
    times = torch.full((len(x),), t, device=denoiser.device)
    return (denoiser.predict(x, times, conditioning, denoiser.view) - empty).flatten(1).norm(dim=1)


def lowered(denoiser: Denoiser, conditioning: Conditioning, x: torch.Tensor, t: int, target: float, rate: float, steps: int) -> Conditioning:
    """Move the states until the magnitude of each image is at most `target`, or for `steps` steps of AdamW; an image below it is left alone."""
    begin, given = conditioning.states[:, :1].float(), conditioning.states[:, 1:].float()
    empty = under_nothing(denoiser, x, t)
    with torch.enable_grad():
        moved = given.clone().requires_grad_()
        optimizer = torch.optim.AdamW([moved], lr=rate)
        for _ in range(steps):
            states = torch.cat([begin, moved], 1).to(conditioning.states.dtype)
            sizes = magnitudes(denoiser, Conditioning(states, conditioning.extra), x, t, empty)
            above = sizes.detach() > target
            if not above.any():
                break
            before = moved.detach().clone()
            optimizer.zero_grad()
            (moved.grad,) = torch.autograd.grad(sizes.sum(), [moved])  # rows do not meet, so that an image does not depend on its batch
            optimizer.step()
            with torch.no_grad():
                moved.copy_(torch.where(above[:, None, None], moved, before))
    states = torch.cat([begin, moved.detach()], 1).to(conditioning.states.dtype)
    return Conditioning(states, conditioning.extra)
