"""Methods that ask what a model has memorised: model and works in, a record out, and the pictures that go with it."""
