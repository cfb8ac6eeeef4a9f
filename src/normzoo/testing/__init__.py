"""The laws that a normalization layer obeys, for layers of your own."""
