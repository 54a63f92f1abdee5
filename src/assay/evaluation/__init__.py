"""Pure metrics: images, features and counts in, numbers with intervals out. Nothing here knows a model."""
