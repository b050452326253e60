"""Scans, branches and shard_maps, to be read in this order: decision, body, find, pieces, emit, options, decide."""
