"""Malformed and hostile configs and flags, made at random from a seed: each says what its one message must name."""

import inspect
import random
import re
import string
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from lightning.pytorch import Callback

from normzoo import callbacks, data, models, norms
from normzoo.cli.fit import CLI
from normzoo.tasks import Classifier, schedules

ROOT = Path(__file__).parents[2]
MARKER = "imported"  # the file that the forbidden module writes when it is imported
FORBIDDEN = f"""
open({MARKER!r}, "w").close()
from normzoo.norms import BatchNorm


class Norm(BatchNorm):
    pass


def run(*args, **kwargs):
    open({MARKER!r}, "w").close()
"""


@dataclass(frozen=True)
class Case:
    """A command, and what must come of it.

    Attributes:
        kind: what is wrong with it.
        arguments: of `normzoo fit`.
        files: the config files it names, and their bytes.
        names: words of which the message holds at least one: the key or the file that is wrong.
        meant: a word that it holds as well: the right one.
        lucky: whether it may happen to be right, as a file that is cut at the end of a line.
    """

    kind: str
    arguments: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    meant: str = ""
    lucky: bool = False


# What a wrong type is.


@dataclass(frozen=True)
class Argument:
    """An argument of the parser, or of a class that it builds.

    Attributes:
        key: its key in a config.
        hint: its type.
        needs: flags that choose the class it belongs to.
    """

    key: str
    hint: Any
    needs: tuple[str, ...] = ()


def parser_arguments() -> Iterator[Argument]:
    """All that the parser itself declares."""
    parser = jsonargparse.capture_parser(lambda: CLI(["fit"]))
    [commands] = [action for action in parser._actions if isinstance(action.choices, dict)]
    for action in commands.choices["fit"]._actions:
        hint = getattr(action, "_typehint", None)
        if hint is not None and not action.option_strings[0].endswith(".help"):
            yield Argument(action.option_strings[0].lstrip("-"), hint)


def class_arguments() -> Iterator[Argument]:
    """All that the classes take which a flag can choose."""
    monitors = [one for one in vars(callbacks).values() if isinstance(one, type) and issubclass(one, Callback)]
    monitors.remove(callbacks.ProgressBar)  # Lightning has one of that name as well
    rooms: list[tuple[str, list[type], tuple[str, ...]]] = [
        ("model", [Classifier], ()),
        ("model.net", [models.MLP, models.ConvNet, models.ResNet], ()),
        ("model.net.norm", list(norms.layers().values()), ("--model.net=ConvNet",)),
        ("model.net.init", [models.Kaiming, models.Xavier, models.Normal, models.Orthogonal], ()),
        ("model.optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop], ()),
        ("model.lr_scheduler", [schedules.WarmupCosine, torch.optim.lr_scheduler.StepLR], ()),
        ("data", [data.Digits, data.FashionMNIST, data.CIFAR10], ()),
        ("trainer.callbacks", monitors, ()),
    ]
    for key, classes, needs in rooms:
        for one in classes:
            try:
                hints = typing.get_type_hints(one.__init__)
            except NameError:
                continue
            for name, parameter in inspect.signature(one).parameters.items():
                if parameter.default is not inspect.Parameter.empty and name in hints:
                    where = () if one is Classifier else (f"--{key}={one.__name__}",)
                    yield Argument(f"{key}.{name}", hints[name], (*needs, *where))


def members(hint: Any) -> list[Any]:
    """The types of a union, or the one type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [one for member in typing.get_args(hint) for one in members(member)]
    return [hint]


# Values, and the types that take them; each is refused by all others.
VALUES: dict[str, set[Any]] = {
    "nonsense": {str},
    "1.5": {float, str},
    "[nonsense, words]": {str, dict},
    "{nonsense: 1}": {str, dict},
    "2024-13-45": {str},
    "[[1], {}]": {str},
    "!!": {str},
}


def takes(hint: Any, value: str) -> bool:
    """Whether an argument of a type might take a value, read as YAML."""
    for one in members(hint):
        plain = typing.get_origin(one) or one
        if plain in (Any, object, inspect.Parameter.empty, torch.Tensor) or plain in VALUES[value]:
            return True
        if inspect.isclass(plain) and (issubclass(plain, Path) or plain is type):
            return True
        if plain is dict and value.startswith("{"):
            return True
        if plain in (list, tuple) and value.startswith("[") and str in typing.get_args(one):
            return True
        if inspect.isclass(plain) and value.startswith("{") and plain.__module__.split(".")[0] not in ("builtins",):
            return True  # the arguments of a class may be given without its name
        if plain is Callable and value.startswith("{"):
            return True
    return False


class Maker:
    """Makes cases; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.arguments = [*parser_arguments(), *class_arguments()]
        self.configs = [path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml"))]
        self.whole = (ROOT / "configs" / "digits_mlp.yaml").read_text()
        self.makers: dict[str, tuple[int, Callable[[], Case]]] = {
            "wrong type on the command line": (22, self.wrong_flag),
            "wrong type in a file": (14, self.wrong_setting),
            "unknown flag": (8, self.unknown_flag),
            "unknown key": (12, self.unknown_key),
            "cut": (6, self.cut),
            "flipped": (4, self.flipped),
            "nested": (4, self.nested),
            "binary": (4, self.binary),
            "forbidden import": (14, self.forbidden),
            "bomb": (6, self.bomb),
            "encoding": (4, self.encoding),
            "misshapen": (12, self.misshapen),
            "not YAML's core": (6, self.odd),
        }

    def cases(self, number: int) -> list[Case]:
        """So many cases, of all kinds in turn by their weights."""
        kinds = [kind for kind, (weight, _) in self.makers.items() for _ in range(weight)]
        self.random.shuffle(kinds)
        return [self.makers[kinds[index % len(kinds)]][1]() for index in range(number)]

    def file(self, kind: str, content: str | bytes, *names: str, meant: str = "", lucky: bool = False) -> Case:
        """A case that is one config file."""
        text = content.encode() if isinstance(content, str) else content
        return Case(kind, ("-c", "case.yaml"), {"case.yaml": text}, (*names, "case.yaml"), meant, lucky)

    # Types.

    def wrong(self) -> tuple[Argument, str]:
        while True:
            argument = self.random.choice(self.arguments)
            value = self.random.choice(list(VALUES))
            if not takes(argument.hint, value):
                return argument, value

    def wrong_flag(self) -> Case:
        argument, value = self.wrong()
        flags = (*argument.needs, f"--{argument.key}={value}")
        return Case("wrong type on the command line", flags, {}, (argument.key, argument.key.rsplit(".")[-1]))

    def wrong_setting(self) -> Case:
        """The same, as a file has it: in front of it, flags say which class it is for."""
        argument, value = self.wrong()
        settings: Any = f"VALUE{self.random.random()}"
        place = settings
        for part in reversed(argument.key.split(".")):
            settings = {part: settings}
        text = yaml.safe_dump(settings).replace(place, value if value != "!!" else "'!!'")
        names = (argument.key, argument.key.rsplit(".")[-1], "trainer.callbacks", "case.yaml")
        return Case("wrong type in a file", (*argument.needs, "-c", "case.yaml"), {"case.yaml": text.encode()}, names)

    # Names.

    def typo(self, word: str) -> str:
        """The word, one letter of which is doubled, missing, changed or in the place of its neighbour."""
        while True:
            at = self.random.randrange(len(word))
            new = self.random.choice(
                [
                    word[:at] + word[at] + word[at:],
                    word[:at] + word[at + 1 :],
                    word[:at] + self.random.choice(string.ascii_lowercase) + word[at + 1 :],
                    word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :],
                ]
            )
            if new.isidentifier() and new not in (word, f"{word}_") and f"{new}s" != word:
                return new

    def unknown_flag(self) -> Case:
        argument = self.random.choice(self.arguments)
        *above, name = argument.key.split(".")
        wrong = self.typo(name)
        siblings = {other.key for other in self.arguments}
        if ".".join([*above, wrong]) in siblings:
            return self.unknown_flag()
        return Case("unknown flag", (*argument.needs, f"--{'.'.join([*above, wrong])}=1"), {}, (wrong,), name)

    def unknown_key(self) -> Case:
        """One key of a config, mistyped, at any level: the message names it and, near it, the right one."""
        settings = yaml.safe_load(self.random.choice(self.configs))
        place, key = self.random.choice(list(keys_of(settings)))
        wrong = self.typo(key)
        if wrong in place:
            return self.unknown_key()
        items = list(place.items())
        place.clear()
        place.update({wrong if name == key else name: value for name, value in items})
        return self.file("unknown key", yaml.safe_dump(settings, sort_keys=False), wrong, meant=key)

    # Files that broke.

    def body(self) -> str:
        """A config without the comment it opens with."""
        lines = self.random.choice(self.configs).splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("#"))

    def cut(self) -> Case:
        text = self.body().encode()
        return self.file("cut", text[: self.random.randrange(1, len(text))], "model", "data", "trainer", lucky=True)

    def flipped(self) -> Case:
        text = bytearray(self.body().encode())
        for _ in range(self.random.randint(1, 3)):
            text[self.random.randrange(len(text))] ^= 1 << self.random.randrange(8)
        return self.file("flipped", bytes(text), "model", "data", "trainer", "experiment", "option", lucky=True)

    def binary(self) -> Case:
        size = self.random.choice([1, 10, 1000, 100_000, 500_000])
        content = self.random.choice(
            [self.random.randbytes(size), bytes(size), b"\x7fELF" + self.random.randbytes(size), b"PK\x03\x04" * size]
        )
        if content.isascii() and all(32 <= byte < 127 for byte in content):
            return self.binary()
        return self.file("binary", content)

    def nested(self) -> Case:
        depth = self.random.choice([60, 300, 900, 5000, 100_000])
        before, after = self.random.choice([("[", "]"), ("{a: ", "}"), ("- ", ""), ("[{a: ", "}]"), ("? ", "")])
        closed = self.random.choice([True, False])
        deep = before * depth + "1" + (after * depth if closed else "")
        key = self.random.choice(["trainer", "experiment", "model", "x"])
        if self.random.random() < 0.3 and depth < 10_000:
            argument = self.random.choice(["model.net.hidden", "trainer.max_epochs", "data", "model.net.norm"])
            return Case("nested", (f"--{argument}={deep}",), {}, (argument,))
        return self.file("nested", f"{key}:\n {deep}")

    # What would run code.

    def forbidden(self) -> Case:
        path = self.random.choice(
            [
                *["forbidden.Norm", "forbidden.run", "forbidden.missing", "forbidden.inner.Norm", "torche.nn.ReLU"],
                *["os.system", "subprocess.Popen", "builtins.exec", "importlib.import_module", "ctypes.CDLL"],
                *["torch.os.system", "normzoo.cli.fit.shutil.rmtree", "lightning.pytorch.trainer.trainer.os.system"],
                *["torch.hub.load", "torch.jit.load", "torch.load", "torch.ops.load_library", "torch.builtins.exec"],
                *["jsonargparse.set_parsing_settings", "pickle.loads", "torch.package.PackageImporter"],
                *["lightning.pytorch.cli.LightningCLI", "normzoo.tasks.Classifier.load_from_checkpoint"],
                *["torch.utils.cpp_extension.load", "functools.partial", "yaml.unsafe_load", "numpy.load"],
            ]
        )
        spelled = self.random.choice([path, {"class_path": path}, {"class_path": path, "init_args": {"f": "x"}}])
        net = {"class_path": "normzoo.models.MLP", "init_args": {}}
        task = {"class_path": "normzoo.tasks.Classifier", "init_args": {"net": net}}
        settings: Any = {"model": task}
        place = self.random.choice(
            [
                *["norm", "activation", "init", "optimizer", "lr_scheduler", "net", "data", "callbacks", "logger"],
                *["model", "lambda", "schedule", "plugins", "profiler", "sub"],
            ]
        )
        files = {}
        if place in ("norm", "activation", "init"):
            net["init_args"] = {place: spelled}
        elif place in ("net", "optimizer", "lr_scheduler"):
            task["init_args"][place] = spelled  # type: ignore[index]
        elif place in ("callbacks", "logger", "plugins", "profiler"):
            settings["trainer"] = {place: [spelled] if place != "profiler" else spelled}
        elif place == "lambda":
            hook = {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": spelled}}
            settings["trainer"] = {"callbacks": [hook]}
        elif place == "schedule":
            rate = {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": spelled}}
            task["init_args"]["lr_scheduler"] = rate  # type: ignore[index]
        elif place == "sub":
            files["sub.yaml"] = yaml.safe_dump(spelled if isinstance(spelled, dict) else {"class_path": path}).encode()
            settings["model"] = "sub.yaml"
        else:
            settings[place] = spelled
        case = self.file("forbidden import", yaml.safe_dump(settings, sort_keys=False), path, "sub.yaml")
        return Case(case.kind, case.arguments, {**case.files, **files}, (*case.names, place))

    # What grows.

    def bomb(self) -> Case:
        width, height = self.random.choice([(10, 9), (2, 60), (50, 6), (100, 4)])
        pick = self.random.randrange(6)
        names = [f"a{level}" for level in range(height)]
        if pick == 0:
            lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
            lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * width)}]" for a, b in pairwise(names)]
        elif pick == 1:
            lines = [f"a0: &a0 {{{', '.join(f'k{i}: x' for i in range(width))}}}"]
            lines += [f"{b}: &{b} {{{', '.join(f'k{i}: *{a}' for i in range(width))}}}" for a, b in pairwise(names)]
        elif pick == 2:
            lines = ["a0: &a0 {k: x}"]
            lines += [f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * width)}], k{b}: *{a}}}" for a, b in pairwise(names)]
            lines.append("unknown: 1")
        elif pick == 3:
            lines = [self.random.choice(["a: &a [*a]", "a: &a {b: *a}", "a: &a [[*a, *a]]", "a: &a\n  <<: *a"])]
        elif pick == 4:
            lines = [f"experiment: [{', '.join(['x'] * self.random.choice([30_000, 80_000, 200_000]))}]"]
        else:
            lines = [f"trainer: {{max_epochs: {'9' * self.random.choice([200, 5000, 200_000])}}}"]
        return self.file("bomb", "\n".join(lines), *names)

    # Text that is none.

    def encoding(self) -> Case:
        text = self.whole.replace("digits_mlp", "größe")
        spoiled = [
            text.encode("utf-16"),
            text.encode("utf-32"),
            text.encode("latin-1"),
            text.replace("größe", "a\0b").encode(),
            text.replace("größe", "a\x1bb").encode(),
            b"\xef\xbb\xbf\xef\xbb\xbf\xff" + text.encode(),
            text.encode("utf-16-le"),
            text.encode("utf-7").replace(b"experiment", b"+AGU-xperiment"),
            text.encode("cp037"),
            text.encode() + b"\xc0\x80",
            text.replace("größe", "a\ud800b").encode("utf-8", "surrogatepass"),
        ]
        return self.file("encoding", self.random.choice(spoiled), "experiment", "+AGU-xperiment")

    # A right file, a part of which is something else.

    def misshapen(self) -> Case:
        settings = yaml.safe_load(self.random.choice(self.configs))
        place, key = self.random.choice([(p, k) for p, k in keys_of(settings) if k != "experiment"])
        value = place[key]
        others: list[Any] = [[1, [2]], {"a": {"b": 1}}, -1.5, "no such thing", [], {"class_path": [1]}]
        if not isinstance(value, dict) and key != "augment":
            others += [{"class_path": "MLP", "init_args": []}, {"init_args": 3}, {"class_path": "nothing"}]
        kind = type(value)
        wrong = [other for other in others if not isinstance(other, kind) or (isinstance(value, dict) and other)]
        if kind in (int, float):
            wrong = [other for other in wrong if not isinstance(other, int | float)]
        if key in ("callbacks", "hidden", "augment"):
            wrong = [other for other in wrong if other != []]
        if key in ("trainer", "init_args"):
            wrong = [other for other in wrong if other != {} and other != []] + [5]
        place[key] = self.random.choice(wrong)
        return self.file("misshapen", yaml.safe_dump(settings, sort_keys=False), key, "no argument 'a'")

    def odd(self) -> Case:
        """What YAML allows and settings do not."""
        text = self.random.choice(
            [
                "experiment: a\nexperiment: b\n",
                "trainer: {max_epochs: 1, max_epochs: 2}\n",
                "1: a\n",
                "on: a\n",
                "null: a\n",
                "? [a, b]\n: c\n",
                "? {a: b}\n: c\n",
                "2024-01-01: a\n",
                "trainer: {max_epochs: 010}\n",
                "trainer: {max_epochs: 1:30}\n",
                "a: !!python/object/apply:os.system ['touch imported']\n",
                "a: !!python/name:os.system\n",
                "a: !!python/module:forbidden\n",
                "!!python/object/new:forbidden.Norm {}\n",
                "a: !unknown x\n",
                "a: !!binary 123\n",
                "experiment: a\n---\nexperiment: b\n",
                "- experiment: a\n",
                "just words\n",
                "---\n",
                "# nothing\n",
                "42\n",
                "%YAML 9.9\n---\na: b\n",
                "%TAG ! tag:x,2000:\n---\n!a b: c\n",
                "experiment: 'a\n",
                'experiment: "\\xzz"\n',
                "\texperiment: a\n",
                "experiment: a\n   trainer: b\n",
                "experiment: *nothing\n",
                "__path__: x\n",
                "model: {__path__: x, class_path: Classifier}\n",
                "model: {class_path: Classifier, dict_kwargs: {x: 1}}\n",
                "model: {class_path: Classifier, dict_kwargs: 3}\n",
                "config: case.yaml\n",
                "model: case.yaml\n",
                "trainer: case.yaml\n",
                "trainer: {callbacks: [case.yaml]}\n",
                "trainer: {callbacks: ['-']}\n",
                "allow: forbidden\n",
                "print_config: true\n",
                "help: true\n",
                "fit: {experiment: a}\n",
                "subcommand: test\n",
                "model: http://localhost:9/x.yaml\n",
                "model: {class_path: Classifier, init_args: {net: {class_path: 'MLP()'}}}\n",
                "model: {class_path: ''}\n",
                "model: {class_path: '..'}\n",
                "model: {class_path: 'normzoo..models'}\n",
                "model: {class_path: normzoo}\n",
                "model: {class_path: normzoo.tasks.classifier}\n",
                "seed_everything: .inf\n",
                "seed_everything: null\n",
                "data: null\nmodel: null\n",
                "ckpt_path: /dev/zero\n",
                "ckpt_path: .\n",
                "runs: /proc/nowhere\ntrainer: {fast_dev_run: false}\n",
                "experiment: ../../x\ntrainer: {fast_dev_run: false}\n",
                f"experiment: {'x' * 5000}\ntrainer: {{fast_dev_run: false}}\n",
                "trainer: {max_epochs: 1e400}\n",
                "trainer: {devices: 10000000000000000000000}\n",
                "data: {class_path: Digits, init_args: {batch_size: 1.0e+30}}\n",
                "data: {class_path: Digits, init_args: {split_seed: 1000000000000000000000000}}\n",
                "data: {class_path: Digits, init_args: {val_size: 1000000000000000000000000}}\n",
                "model: {class_path: Classifier, init_args: {net: {class_path: MLP, init_args: {hidden: [.nan]}}}}\n",
            ]
        )
        return self.file("not YAML's core", text, *re.findall(r"\w{3,}", text), "'-'", "too long")


def keys_of(settings: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """All places of settings: a mapping, and a key in it."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield settings, key
            yield from keys_of(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from keys_of(value)
