"""Work in tiles: how a box is cut, what a tile reads, and the loops over tiles with their derivatives."""
