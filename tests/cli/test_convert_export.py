"""`normzoo convert` and `normzoo export`: what they write computes what the checkpoint does, and what they refuse."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnxruntime
import pytest
import torch
from commands import fit, normzoo
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from normzoo.cli.export import check, example_of, program
from normzoo.errors import InputError
from normzoo.norms import BatchNorm, GroupNorm
from normzoo.runs import load_checkpoint, load_task


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet of eight layers with BatchNorm, trained for three epochs."""
    folder = tmp_path_factory.mktemp("runs")
    network = ("--model.net=ResNet", "--model.net.depth=8", "--model.net.width=4")
    return fit(f"--runs={folder}", *network, "--trainer.max_epochs=3")


def said(*arguments: Any) -> str:
    """What a command that succeeds prints."""
    result = normzoo(*map(str, arguments))
    assert result.status == 0, result.err
    return result.out


def refused(*arguments: Any) -> str:
    """The message of a command that fails."""
    result = normzoo(*map(str, arguments))
    assert result.status == 1, result.out
    assert result.err.startswith("normzoo: error: ")
    return result.err


def accuracy(path: Path) -> float:
    out = said("test", f"--ckpt_path={path}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
    return float(next(line for line in out.splitlines() if "test/accuracy" in line).split("\u2502")[2])


def test_a_converted_checkpoint_is_loaded_as_any_other(run: Path, tmp_path: Path) -> None:
    rule = "normzoo.norms.*=GroupNorm(num_groups=2)"
    assert "replaced 9 layers" in said("convert", run, "--rules", rule, "-o", tmp_path / "new.ckpt")
    net = load_task(tmp_path / "new.ckpt").net
    assert [m.num_groups for m in net.modules() if isinstance(m, GroupNorm)] == [2] * 9
    assert not any(isinstance(m, BatchNorm) for m in net.modules())
    assert "optimizer_states" not in load_checkpoint(tmp_path / "new.ckpt")


@pytest.mark.slow
def test_a_converted_checkpoint_is_tested_as_any_other(run: Path, tmp_path: Path) -> None:
    """And its outputs are near those of the old network if they were fitted."""
    for match in ("output", "nothing"):
        said("convert", run, "--rules", "BatchNorm=GroupNorm(num_groups=2)", f"--match={match}", "-o", tmp_path / match)
    assert accuracy(tmp_path / "output") > accuracy(tmp_path / "nothing") + 0.2
    assert f"predictions  {tmp_path / 'predictions.csv'}" in said("predict", f"--ckpt_path={tmp_path / 'output'}")


@pytest.mark.slow
@pytest.mark.parametrize("there", ["TorchBatchNorm", "GroupNorm"])
def test_there_and_back(run: Path, tmp_path: Path, there: str) -> None:
    """Between norms that cancel a bias and norms that do not; the weights stay, and what both layers keep."""
    said("convert", run, "--rules", f"Batch*={there}", "-o", tmp_path / "there.ckpt")
    said("convert", tmp_path / "there.ckpt", "--rules", f"{there}=BatchNorm", "-o", tmp_path / "back.ckpt")
    old, new = (load_task(path).eval() for path in (run / "checkpoints" / "best.ckpt", tmp_path / "back.ckpt"))
    assert [*old.state_dict()] == [*new.state_dict()]
    assert torch.equal(old.net.stem.norm.weight, new.net.stem.norm.weight)
    if there == "TorchBatchNorm":  # it has running statistics
        x = torch.randn(3, 1, 8, 8)
        assert torch.equal(old(x), new(x))


@pytest.mark.slow
@pytest.mark.parametrize("fold", [(), ("--fold",)])
def test_an_exported_network_computes_the_same(run: Path, tmp_path: Path, fold: tuple[str, ...]) -> None:
    """For any number of images, in onnxruntime and as a program of torch."""
    net = load_task(run / "checkpoints" / "best.ckpt").net.eval()
    x = torch.randn(7, 1, 8, 8)
    assert ("folded 9 of 9 norms" in said("export", run, "-o", tmp_path / "net.onnx", *fold)) == bool(fold)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    y = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    said("export", run, "-o", tmp_path / "net.pt2", *fold)
    with torch.no_grad():
        for output in (y, torch.export.load(tmp_path / "net.pt2").module()(x)):
            assert torch.allclose(output, net(x), atol=1e-4)


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no rule matches": (("convert", "--rules", "LayerNorm=GroupNorm"), "it names BatchNorm"),
    "one of two matches": (
        ("convert", "--rules", "BatchNorm=GroupNorm", "LayerNorm=GroupNorm"),
        "'LayerNorm' matches no",
    ),
    "no layer": (("convert", "--rules", "BatchNorm=os.getpid"), "there is no layer 'os.getpid'"),
    "no rule": (("convert", "--rules", "BatchNorm"), "a rule is OLD=NEW"),
    "code": (("convert", "--rules", "BatchNorm=GroupNorm(num_groups=open('x'))"), "a rule is OLD=NEW"),
    "no such layer": (("convert", "--rules", "BatchNorm=GroopNorm"), "there is no layer 'normzoo.norms.GroopNorm'"),
    "no such argument": (("convert", "--rules", "BatchNorm=GroupNorm(groups=3)"), "groups"),
    "groups that do not divide": (("convert", "--rules", "BatchNorm=GroupNorm(num_groups=3)"), "num_groups=3"),
    "another suffix": (("export", "-o", "net.tflite"), "*.onnx or *.pt2"),
    "no folder": (("export", "-o", "there/is/none.onnx"), "there is no folder"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_and_writes_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.chdir(tmp_path)
    (command, *options), message = REFUSED[what]
    output = () if "-o" in options else ("-o", "new.ckpt")
    assert message in refused(command, run, *options, *output)
    assert not [*tmp_path.iterdir()]


def test_refuses_a_file_that_exists(run: Path, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("mine")
    assert "it exists" in refused("export", run, "-o", tmp_path / "net.onnx")
    assert "it exists" in refused("convert", run, "--rules", "BatchNorm=GroupNorm", "-o", tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_text() == "mine"


def test_refuses_a_checkpoint_of_another_architecture(run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run / "checkpoints" / "best.ckpt")
    checkpoint["state_dict"].pop("net.head.weight")
    torch.save(checkpoint, tmp_path / "other.ckpt")
    for command in (("export",), ("convert", "--rules", "BatchNorm=GroupNorm")):
        output = tmp_path / "new.onnx"
        assert "another architecture" in refused(command[0], tmp_path / "other.ckpt", *command[1:], "-o", output)
        assert not output.exists()


def test_names_what_is_to_be_installed(run: Path, tmp_path: Path) -> None:
    with patch.dict(sys.modules, {"onnxscript": None}):
        assert "pip install 'normzoo[export]'" in refused("export", run, "-o", tmp_path / "net.onnx")


@pytest.mark.slow
def test_names_a_norm_that_onnx_cannot_compute(tmp_path: Path) -> None:
    norm = "--model.net.norm=DecorrelatedBatchNorm"
    trained = fit(f"--runs={tmp_path}", "--model.net=MLP", norm, "--trainer.max_epochs=1")
    assert "cannot be exported to ONNX" in refused("export", trained, "-o", tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_an_example_of_a_task() -> None:
    """From Lightning's own attribute; else of the network's, or of its saved argument, as the data has it."""
    task = LightningModule()
    assert example_of(task) is None
    task.net = nn.Identity()
    assert example_of(task) is None
    saved = {"init_args": {"net": {"class_path": "mine.Net", "init_args": {"input_shape": [3, 8, 8]}}}}
    assert example_of(task, saved).shape == (2, 3, 8, 8)
    for given in (torch.rand(1, 5), torch.arange(15).view(3, 5)):
        task.example_input_array = given
        assert torch.equal(example_of(task), torch.cat([given] * 2)[:2])
    task.example_input_array = torch.zeros(1, 5)  # would show no difference
    assert example_of(task).std() > 0


class Heads(nn.Module):
    """Logits, classes and an embedding of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        y = self.embed(tokens)
        return {"y": y, "logits": self.head(y), "classes": self.head(y).argmax(-1)}


def test_all_outputs_are_compared() -> None:
    """Of a dictionary, as of a tensor; tokens are no numbers to scale."""
    net, x = Heads(), torch.randint(0, 10, (2, 5))
    _, run = program(net, x)
    assert check(net, run, x) < 1e-6
    with torch.no_grad():
        net.head.bias.add_(1)
    with pytest.raises(InputError, match="differs by"):
        check(net, run, x)


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 5)


def test_a_network_for_one_number_of_samples_is_refused() -> None:
    with pytest.raises(InputError, match="for any number of samples: Constraints violated"):
        program(Fixed(), torch.randn(2, 5))
