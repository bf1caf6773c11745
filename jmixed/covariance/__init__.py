"""Structures of the random effects' covariance, and the scales in which people read it."""
