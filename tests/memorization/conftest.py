"""A denoiser whose predictions are known in closed form, on a real tiny pipeline: data are Gaussian, N(centre(prompt), width^2) in every place.

The exact prediction is then linear: e(x, t) = s_t (x - a_t centre) / (a_t^2 width^2 + s_t^2).
"""

from __future__ import annotations

import pytest
import torch

from assay.denoiser import Denoiser
from assay.memorization.tape import Passes, record
from assay.noise import normal
from assay.testing import tiny

WIDTH = 0.5
PASSES = Passes((100, 400), 2, 500, 150, 60, 20)
WORDINGS = {"caption": ["red", "red", "blue"], "empty": [""] * 3, "another": ["blue", "blue", "red"]}


class Gaussian(Denoiser):
    """Predicts exactly; the centre of a prompt is the mean of its encoding, so that prompts differ."""

    def predict(self, x_t, t, conditioning, view="epsilon"):
        self.passes += len(x_t)
        centre = self.centre(conditioning)[:, None, None, None]
        a, s = self.scales(t)
        return s * (x_t - a * centre) / (a * a * WIDTH**2 + s * s)

    def centre(self, conditioning):
        return conditioning.states[:, 1, :3].sum(1)


class Memoriser(Denoiser):
    """The exact minimiser of the training loss over some works: x_0 is their mean, weighted by how likely each is to have become x_t.

    A caption that was trained narrows the works down to its own; any other prompt, the empty one too, is about all of them.
    """

    def learn(self, works, rows):
        self.pictures = torch.from_numpy(works.take(rows).pixels(self.image_size)).permute(0, 3, 1, 2) / 255
        self.seen = self.latents(self.pictures).double()
        self.texts = self.conditioning([works.column("captions")[row][0] for row in rows]).states
        return self

    def images(self, latents):
        """Decode to the nearest picture that was learnt: the tiny autoencoder was never trained."""
        return self.pictures[(latents.double()[:, None] - self.seen).flatten(2).square().sum(2).argmin(1)]

    def predict(self, x_t, t, conditioning, view="epsilon"):
        self.passes += len(x_t)
        a, s = (scale.double() for scale in self.scales(t))
        away = (x_t.double()[:, None] - a[:, None] * self.seen[None]).flatten(2).square().sum(2)
        apart = (conditioning.states[:, None] - self.texts[None]).flatten(2).abs().amax(2) > 1e-6
        known = ~apart.all(1, keepdim=True)
        weights = (-away / (2 * s[:, 0, 0] ** 2)).masked_fill(apart & known, -torch.inf).softmax(1)
        return ((x_t.double() - a * torch.einsum("nm,mchw->nchw", weights, self.seen)) / s).float()


@pytest.fixture(scope="session")
def memoriser():
    """Return a model that learnt some rows of works by heart."""
    return lambda works, rows: Memoriser(tiny().pipeline, "memoriser").learn(works, rows)


@pytest.fixture(scope="session")
def gaussian():
    return Gaussian(tiny().pipeline, "gaussian")


@pytest.fixture(scope="session")
def latents(gaussian):
    return normal(gaussian.latent_shape, [1, 2, 3])


@pytest.fixture(scope="session")
def tape(gaussian, latents):
    return record(gaussian, latents, ["a", "b", "c"], WORDINGS, PASSES, seed=0, batch=5)


@pytest.fixture(scope="session")
def exact(gaussian):
    """The closed form in float64: (x, t, prompt) -> predicted noise; and a_t, s_t."""

    class Exact:
        passes = PASSES

        def scales(self, t):
            alpha = float(gaussian.alphas_cumprod[t])
            return alpha**0.5, (1 - alpha) ** 0.5

        def slope(self, t):
            a, s = self.scales(t)
            return s / (a * a * WIDTH**2 + s * s)

        def centres(self, wording="caption"):
            return gaussian.centre(gaussian.conditioning(WORDINGS[wording])).double()[:, None, None, None]

        def predict(self, x, t, wording="caption"):
            return self.slope(t) * (x - self.scales(t)[0] * self.centres(wording))

    return Exact()


@pytest.fixture(scope="session")
def x0(latents):
    return latents.double()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield
