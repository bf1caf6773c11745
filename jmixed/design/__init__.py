"""Words to arrays: formulas and data frames become the arrays of a model."""
