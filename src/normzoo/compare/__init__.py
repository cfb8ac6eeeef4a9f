"""Many runs: a grid of settings and seeds, each cell an ordinary run."""

from normzoo.compare.grid import Grid as Grid
