"""Compile for a target, real or absent, and read the bytes."""
