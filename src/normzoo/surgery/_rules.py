"""Which layers a mapping of rules names, and what builds the new ones."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from torch import nn

from normzoo.errors import InputError
from normzoo.monitoring.layers import Layers, is_called, is_norm
from normzoo.surgery._norms import above, inside
from normzoo.surgery._swap import Factory

Rule = str | type[nn.Module] | nn.Module


def choose(root: nn.Module, rules: Mapping[Rule, Factory], where: Layers) -> dict[nn.Module, tuple[list[str], Factory]]:
    """The layers to replace, with their names and what builds the new ones.

    Raises:
        InputError: a rule matches no layer, or none of those that `where` names.
    """
    named = inside(root, where)
    chosen: dict[nn.Module, tuple[list[str], Factory]] = {}
    unused = dict.fromkeys(rules)
    for name, layer in named.items():
        fitting = [rule for rule in rules if fits(rule, layer)]
        for rule in fitting:
            unused.pop(rule, None)
        if fitting and not any(named.get(one) in chosen for one in above(name)):
            names, _ = chosen.setdefault(layer, ([], rules[fitting[0]]))
            names.append(name)
    if not rules or unused:
        raise InputError(unmatched(next(iter(unused), "rules={}"), inside(root, "*"), where))
    return chosen


def fits(rule: Rule, layer: nn.Module) -> bool:
    """Whether a rule names a layer."""
    if isinstance(rule, nn.Module):
        return layer is rule
    return isinstance(layer, rule) if isinstance(rule, type) else is_called(type(layer), rule) and is_norm(layer)


def unmatched(rule: Rule, named: Mapping[str, nn.Module], where: Layers) -> str:
    """The message for a rule that matches no layer."""
    shown = repr(rule) if isinstance(rule, str) else rule.__name__ if isinstance(rule, type) else f"the given {rule}"
    elsewhere = [name for name, layer in named.items() if fits(rule, layer)]
    if elsewhere:
        return f"{shown} matches no layer where={where!r}; it matches {shortened(elsewhere)}."
    kinds = sorted({type(layer).__name__ for layer in named.values() if is_norm(layer)})
    near = get_close_matches(shown.strip("'"), kinds, n=3, cutoff=0.4) or kinds[:3]
    return (
        f"{shown} matches no normalization layer of the network; give a class, a pattern of class names, or a layer; "
        f"there are {', '.join(near) or 'none'}."
    )


def shortened(names: Sequence[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
