"""docs/zoo.md: a card for each layer, from its facts, its documentation and its costs; and the table of the README."""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from references import REFERENCES

from normzoo.cli.norms import FAMILIES, WORDS, describe, marked
from normzoo.norms import Norm, layers
from normzoo.norms._base import Family
from pages import arguments, axes

SECTION = re.compile(r"(?<=<!-- zoo -->\n).*?(?=<!-- /zoo -->)", re.DOTALL)

Costs = Mapping[str, Any]


def write(root: Path) -> list[Path]:
    """Writes the page, its pictures and the README's table below a folder that holds README.md.

    Returns:
        The files that are written.
    """
    costs = root / "docs" / "costs.json"
    page, pictures, readme = root / "docs" / "zoo.md", root / "docs" / "axes", root / "README.md"
    pictures.mkdir(parents=True, exist_ok=True)
    page.write_text(the_page(json.loads(costs.read_text()) if costs.exists() else None))
    drawn = {axes.file_name(layer.facts): axes.picture(layer.facts) for layer in layers().values()}
    for old in pictures.glob("*.svg"):
        if old.name not in drawn:
            old.unlink()
    for name, svg in drawn.items():
        (pictures / name).write_text(svg)
    readme.write_text(with_table(readme.read_text()))
    return [page, *(pictures / name for name in drawn), readme]


def by_family() -> dict[str, list[type[Norm]]]:
    """The layers of each family, in the order of the house."""
    assert {*FAMILIES, "own"} == set(get_args(Family)), "a family needs words"
    found = {family: [one for one in layers().values() if one.facts.family == family] for family in FAMILIES}
    return {family: members for family, members in found.items() if members}


def with_table(readme: str) -> str:
    """The README with its table of the zoo, a row for each family, between the markers."""
    rows = ["| family | layers |", "|---|---|"]
    for family, members in by_family().items():
        heading = f"{family}: {FAMILIES[family]}"
        anchor = re.sub(r"[^a-z -]", "", heading).replace(" ", "-")
        names = ", ".join(layer.__name__ for layer in members)
        rows.append(f"| [{family}](docs/zoo.md#{anchor}): {FAMILIES[family]} | {names} |")
    assert SECTION.search(readme), "README.md has lost its markers <!-- zoo --> and <!-- /zoo -->"
    return SECTION.sub(lambda _: "\n".join(["", *rows, "", ""]), readme, count=1)


def link(layer: type[Norm]) -> str:
    """The paper on arXiv, or its year."""
    paper = layer.facts.paper
    if paper is None:
        return ""
    return f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else str(paper.year)


def the_page(costs: Costs | None) -> str:
    """All of docs/zoo.md."""
    parts = [
        "# The zoo",
        "Written by `scripts/docs` from the facts and the documentation of the layers; edit those.",
        "Statistics run over what is coloured in the pictures: N samples, C channels, s positions; of a weight, C out "
        "are the output channels. In shapes G is the number of groups. How near each layer comes to its paper's "
        "formula and to the implementations of others is in [conformance.md](conformance.md).",
    ]
    if costs:
        parts += [
            "Costs are those of one forward and backward pass in training, by `scripts/bench norms`: medians in "
            "milliseconds, and medians of ratios to `TorchBatchNorm`, to one clone of the tensor, and to others' "
            "implementations of the same; *saved* is the memory kept for the backward pass, as a ratio to that of "
            "`TorchBatchNorm`. Compiled layers are compared with the compiled `TorchBatchNorm`.",
            f"```\n{costs['machine']}\nsettings  {costs['settings']}\n```",
        ]
    parts += [index(), arguments.section(documentation(Norm)[1])]
    for family, members in by_family().items():
        parts += [f"## {family}: {FAMILIES[family]}", *(card(layer, costs) for layer in members)]
    return "\n\n".join(parts) + "\n"


def index() -> str:
    """A line for each layer."""
    rows = [
        "| layer | family | what it does | statistics over | parameters | state | on (N, C) | paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family, members in by_family().items():
        for layer in members:
            row = describe(layer)
            cells = (
                f"[{row['name']}](#{row['name'].lower()})",
                family,
                cell(row["summary"]),
                row["over"],
                ", ".join(f"`{name}`" for name in row["parameters"]),
                ", ".join(f"`{name}`" for name in row["state"]),
                "yes" if row["dense"] else "no",
                link(layer),
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def card(layer: type[Norm], costs: Costs | None) -> str:
    """All that is known of one layer."""
    row, name = describe(layer), layer.__name__
    prose, arguments, reference = documentation(layer)
    picture = f'<img align="right" src="axes/{axes.file_name(layer.facts)}" alt="statistics over {row["over"]}">'
    table = ["| argument | default | |", "|---|---|---|"]
    for argument, meaning in arguments.items():
        default = f"`{row['arguments'][argument]}`" if argument in row["arguments"] else ""
        table.append(f"| `{argument}` | {default} | {cell(meaning)} |")
    holds = [words for fact, words in WORDS.items() if row[fact]]
    lacks = [words for fact, words in WORDS.items() if not row[fact]]
    facts = [
        f"**statistics over** {row['over']}"
        + (", of a weight (C, I, *)".replace("*", r"\*") if row["acts_on"] == "weight" else ""),
        f"**parameters** {tensors(marked(row, 'parameters'))}",
        f"**state** {tensors(marked(row, 'state'))}",
        *(
            [f"**batches** of a multiple of {row['batch_multiple']} samples in training"]
            if row["batch_multiple"] > 1
            else []
        ),
        f"**yes** {'; '.join(holds) or 'none of these'}",
        f"**no** {'; '.join(lacks) or 'none of these'}",
        *(
            f"**laws it does not keep** {', '.join(laws)}: {escaped(why)}"
            for why, laws in by_reason(row["exceptions"]).items()
        ),
        f"**implementations by others** {others(name)}",
    ]
    if reference:
        facts.append(f"**paper** {linked(reference)}")
    parts = [
        f"### {name}",
        picture,
        *prose,
        "\n".join(table),
        "\n".join(f"- {fact}" for fact in facts),
        *measured(name, costs),
        '<br clear="right">',
    ]
    return "\n\n".join(parts)


def documentation(layer: type[Norm]) -> tuple[list[str], dict[str, str], str]:
    """The docstring, in Markdown: its paragraphs; the arguments and what they mean; the reference."""
    prose: list[str] = []
    arguments: dict[str, str] = {}
    reference = ""
    for paragraph in (inspect.getdoc(layer) or "").split("\n\n"):
        opening, _, rest = paragraph.partition("\n")
        if opening == "Args:":
            for line in inspect.cleandoc(rest).splitlines():
                name, colon, text = line.partition(": ")
                if colon and not line.startswith(" "):
                    arguments[name] = text
                else:
                    last = next(reversed(arguments))
                    arguments[last] += f" {line.strip()}"
        elif paragraph.startswith("Reference:"):
            reference = " ".join(paragraph.removeprefix("Reference:").split())
        elif opening.startswith("- "):
            prose.append(listed(paragraph))
        elif opening.startswith("  "):
            prose.append(f"```\n{inspect.cleandoc(paragraph)}\n```")
        elif opening == "Attributes:":
            prose.append(listed(rest))
        elif opening != "Raises:":
            text = " ".join(paragraph.split())
            prose.append(escaped(text.removesuffix(":") if text.endswith("::") else text))
    return prose, arguments, reference


def by_reason(exceptions: Mapping[str, str]) -> dict[str, list[str]]:
    """The laws that a layer does not keep, by the reason."""
    return {why: [law for law, other in exceptions.items() if other == why] for why in exceptions.values()}


def listed(entries: str) -> str:
    """`name: meaning` lines as a list."""
    joined = re.sub(r"\n\s+", " ", inspect.cleandoc(entries)).removeprefix("- ").replace("\n- ", "\n")
    return "\n".join(f"- {escaped(line)}" for line in joined.splitlines())


def escaped(text: str) -> str:
    """Text as Markdown shows it, except between backticks, which stay."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<|])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def cell(text: str) -> str:
    """Text in a table, where a bar would end the cell even in code."""
    parts = escaped(text).split("`")
    parts[1::2] = [part.replace("|", r"\|") for part in parts[1::2]]
    return "`".join(parts)


def linked(reference: str) -> str:
    """A reference whose arXiv numbers are links."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", escaped(reference))


def tensors(shapes: Mapping[str, str]) -> str:
    """Names and shapes in one line."""
    return ", ".join(f"`{name}` {shape}" for name, shape in shapes.items()) or "none"


def others(name: str) -> str:
    """Who else has the layer, and in which layouts it is compared."""
    oracles = REFERENCES[name].oracles if name in REFERENCES else {}
    told = [f"{one} ({', '.join(oracle.layouts)})" for one, oracle in oracles.items()]
    return f"{', '.join(told)}: [how near](conformance.md)" if told else "none that is compared"


def measured(name: str, costs: Costs | None) -> list[str]:
    """The table of costs, a row for each shape."""
    found = [cost for cost in (costs or {"costs": ()})["costs"] if cost["layer"] == name]
    if not found:
        return []
    rows = [
        "| shape | ms | / built-in | / clone | channels-last / built-in | compiled / built-in | / by others | saved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shape in dict.fromkeys(tuple(cost["shape"]) for cost in found):
        of_shape = [cost for cost in found if tuple(cost["shape"]) == shape]
        eager, last, compiled = (
            next((c for c in of_shape if (c["layout"], c["compiled"]) == kind), {})
            for kind in (("contiguous", False), ("channels-last", False), ("contiguous", True))
        )
        saved = eager["saved"] / eager["builtin_saved"] if eager.get("builtin_saved") else None
        by_others = [f"{one} {digits(ratio)}" for one, ratio in eager.get("oracles", {}).items()]
        cells = (
            f"({', '.join(map(str, shape))})",
            digits(eager.get("milliseconds")),
            digits(eager.get("builtin")),
            digits(eager.get("clones")),
            digits(last.get("builtin")),
            digits(compiled.get("builtin")),
            ", ".join(by_others),
            digits(saved),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return ["\n".join(rows)]


def digits(value: float | None) -> str:
    """Two digits after the point; nothing where nothing was measured."""
    return "" if value is None else f"{value:.2f}"
