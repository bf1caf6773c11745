"""Fits: one by one, differentiable, thousands at once, on mini-batches and on several devices."""
