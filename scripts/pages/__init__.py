"""Pages of docs/ that are written by code: from the facts of layers, and from what tests and benches find."""
