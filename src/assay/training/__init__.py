"""Training: one loop, and the parts of a text-to-image pipeline trained with it."""
