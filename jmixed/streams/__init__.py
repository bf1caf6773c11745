"""Tables that come in batches, read in passes and summed to cross-products."""
