"""The pytrees of a model, the order of elimination, and the border from terms to arrays."""
