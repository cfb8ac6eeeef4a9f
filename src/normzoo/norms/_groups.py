"""Groups of neighbouring channels: the rule that every layer with `num_groups` follows."""

from normzoo.errors import InputError
from normzoo.norms._base import Norm


def resolve_groups(layer: Norm, num_groups: int | None) -> int:
    """The number of groups G of C / G neighbouring channels.

    None stands for the most groups, up to the 32 of Wu and He (2018), that leave at least 4 channels in each, so that
    every C and (N, C) work: 64 -> 16, 100 -> 25, 256 -> 32.

    Raises:
        InputError: num_groups does not divide the layer's `num_features`.
    """
    channels = layer.num_features
    divisors = [g for g in range(1, channels + 1) if channels % g == 0]
    if num_groups is None:
        return max((g for g in divisors if g <= 32 and channels // g >= 4), default=1)
    if isinstance(num_groups, bool) or not isinstance(num_groups, int) or num_groups not in divisors:
        raise InputError(
            f"{type(layer).__name__}({channels}, num_groups={num_groups!r}): num_groups must divide the number of "
            f"channels; of {channels} the divisors are {', '.join(map(str, divisors))}."
        )
    return num_groups
