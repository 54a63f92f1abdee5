"""Methods that try to bring back what was taken out of a model: a denoiser with its patches on and works of the concept in, an attack out."""
