"""Scans and branches, read top to bottom: find, body, options, decide, emit."""
