"""What attacks on words share: the one filtered vocabulary that all of them search, and free places for tokens in prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from assay.attacks.target import Target
from assay.concept import Concept
from assay.denoiser import Denoiser
from assay.errors import Misconfigured, Unsupported
from assay.families.sd import Conditioning

LITTLE = frozenset({"and", "the", "with", "for", "from", "style", "picture", "without"})
"""Words that may be part of a concept's name without standing for it."""
END = "</w>"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that an attack may use."""

    ids: torch.Tensor
    """Token ids, ascending: int64, (v,)."""
    tables: tuple[torch.Tensor, ...]
    """Their embeddings, one (v, width) for each text encoder."""
    forbidden: tuple[str, ...]
    """The words that cannot be spelled with them."""
    removed: tuple[str, ...]
    """The tokens that were taken out for it."""


def own_words(concept: Concept) -> list[str]:
    """Return the words that name a concept: of its name, or of those that it stands for; short and common words only where a name has no other."""
    found = []
    for part in concept.parts or (concept,):
        words = part.name.lower().replace(",", " ").split()
        found += [word for word in words if len(word) > 2 and word not in LITTLE] or words
    return list(dict.fromkeys(found))


def spells(piece: str, final: bool, word: str) -> bool:
    """Say whether a token could help to spell a word: it holds the word, or is a part of it of two letters, or of one that no word ends with."""
    return word in piece or (piece in word and (not final or len(piece) > 1))


def vocabulary(denoiser: Denoiser, target: Target) -> Vocabulary:
    """Return the filtered vocabulary: every token but the special ones and those with which a forbidden word could be spelled.

    Raises:
        Unsupported: the model's text encoders read by different vocabularies.
        Misconfigured: nothing is left.
    """
    coder = denoiser.family.encoders[0][0]
    entries: dict[str, int] = coder.get_vocab()
    if any(other.get_vocab() != entries for other, _ in denoiser.family.encoders[1:]):
        raise Unsupported(
            f"The text encoders of {denoiser.name} read by different vocabularies.", "Choose an attack that searches embeddings or latents."
        )
    forbidden = tuple(dict.fromkeys([*own_words(target.concept), *(word.lower() for word in target.forbidden)]))
    special, own = set(coder.all_special_ids), {token for word in forbidden for token in body(coder, word)}
    allowed, removed = [], []
    for piece, index in sorted(entries.items(), key=lambda entry: entry[1]):
        if index in special:
            continue
        bare, final = piece.removesuffix(END).lower(), piece.endswith(END)
        if (index in own and not (final and len(bare) == 1)) or any(spells(bare, final, word) for word in forbidden):
            removed.append(piece.removesuffix(END))
        else:
            allowed.append(index)
    if not allowed:
        raise Misconfigured("No token is left that could not spell a forbidden word.", "Forbid fewer words.")
    ids = torch.tensor(allowed, device=denoiser.device)
    tables = tuple(encoder.get_input_embeddings().weight.detach()[ids].float() for _, encoder in denoiser.family.encoders)
    return Vocabulary(ids, tables, forbidden, tuple(removed))


def body(coder: Any, prompt: str) -> list[int]:
    """Return the token ids of a prompt without begin and end."""
    return coder(prompt, add_special_tokens=False).input_ids


@dataclass(frozen=True)
class Slots:
    """Prompts with free places for tokens."""

    ids: tuple[torch.Tensor, ...]
    """Token ids, one (b, tokens) for each text encoder; a free place holds the begin token."""
    places: torch.Tensor
    """Where the free places are: int64, (b, k)."""

    def filled(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Return the token ids with tokens (b, k) in the free places, one (b, tokens) for each text encoder."""
        return [ids.scatter(1, self.places, tokens) for ids in self.ids]

    def encode(self, denoiser: Denoiser, embeddings: Sequence[torch.Tensor]) -> Conditioning:
        """Encode the prompts with embeddings, one (b, k, width) for each text encoder, in the free places; gradients flow to them."""
        joined = []
        for looked_up, free in zip(denoiser.family.embed(self.ids), embeddings, strict=True):
            joined.append(looked_up.scatter(1, self.places[..., None].expand(-1, -1, free.shape[-1]), free.to(looked_up.dtype)))
        return denoiser.family.encode(self.ids, joined)


def slots(
    denoiser: Denoiser,
    prompts: Sequence[str],
    count: int,
    where: Literal["before", "alone", "between", "instead"] = "before",
    *,
    every: int = 3,
    name: str = "",
) -> Slots:
    """Make free places in prompts.

    Args:
        denoiser: the model.
        prompts: cut at the end where there is no room for them.
        count: free places in each prompt.
        where: before the prompt, alone without it, one after every few of its tokens (any more at its end), or instead of a name in it (before it
            where it does not hold the name).
        every: tokens between two free places, for `between`.
        name: what to put the free places instead of, for `instead`.

    Raises:
        Misconfigured: there is no room for so many.
    """
    rows: list[list[list[int]]] = [[] for _ in denoiser.family.encoders]
    places = []
    for prompt in prompts:
        for at, ((coder, _), context) in enumerate(zip(denoiser.family.encoders, denoiser.family.tokenize([""]), strict=True)):
            length = context.shape[1]
            if not 0 < count <= length - 2:
                raise Misconfigured(f"A prompt has no room for {count} free tokens.", f"It holds {length - 2} tokens in all.")
            laid = arrange(body(coder, prompt), count, where, every, body(coder, name) if name else [])[: length - 2]
            if laid.count(-1) < count:  # some would fall off the end: the prompt gives way
                laid = [token for token in laid if token >= 0][: length - 2 - count] + [-1] * count
            begin, end = coder.bos_token_id, coder.eos_token_id
            rows[at].append([begin, *(begin if token < 0 else token for token in laid), end, *[coder.pad_token_id] * (length - 2 - len(laid))])
            if at == 0:
                places.append([1 + place for place, token in enumerate(laid) if token < 0])
    return Slots(tuple(torch.tensor(row, device=denoiser.device) for row in rows), torch.tensor(places, device=denoiser.device))


def arrange(tokens: Sequence[int], count: int, where: str, every: int = 3, name: Sequence[int] = ()) -> list[int]:
    """Lay out the tokens of a prompt with `count` free places, each written as -1."""
    free = [-1] * count
    if where == "alone":
        return free
    if where == "between":
        laid: list[int] = []
        for place, token in enumerate(tokens, 1):
            laid += [token, *([-1] if place % every == 0 and laid.count(-1) < count else [])]
        return laid + [-1] * (count - laid.count(-1))
    for start in range(len(tokens) - len(name) + 1) if where == "instead" and name else ():
        if list(tokens[start : start + len(name)]) == list(name):
            return [*tokens[:start], *free, *tokens[start + len(name) :]]
    return [*free, *tokens]


def spoken(denoiser: Denoiser, ids: torch.Tensor) -> tuple[str, ...]:
    """Return token ids (b, tokens) in words. Not every row of tokens is what its words would be read as, so models are told the tokens."""
    coder = denoiser.family.encoders[0][0]
    return tuple(text.strip() for text in coder.batch_decode(ids.tolist(), skip_special_tokens=True))
