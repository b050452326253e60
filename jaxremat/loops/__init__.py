"""Scans, branches and shard_maps, read top to bottom: find, body, options, decide, pieces, emit."""
