"""Parts of any program computed otherwise: what a finder names is replaced, and the rest runs as it is."""
