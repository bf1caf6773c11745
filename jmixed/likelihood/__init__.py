"""The marginal likelihood of a linear mixed model: cross-products, elimination, criteria."""
