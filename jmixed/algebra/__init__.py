"""Small batched linear algebra, and the trust-region step."""
