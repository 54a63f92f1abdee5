"""Methods that take a concept out of a model: each file is one paper, with `Settings`, `PRESETS` and `erase`, which returns a `Patch`."""
