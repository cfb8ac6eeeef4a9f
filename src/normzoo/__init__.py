"""normzoo: train networks with any normalization layer, and see what the layer does.

Importing this package is free of torch: the rooms are `normzoo.norms`, `normzoo.models`, `normzoo.data`,
`normzoo.tasks`, `normzoo.callbacks` and `normzoo.cli`.
"""

__version__ = "0.1.0"
