"""Inference on a fit, one method a file: arrays in, small frozen dataclasses out."""
