"""What a shell proposes: the script of `normzoo completion`, sourced by a real bash."""

import subprocess
from pathlib import Path

import pytest
from commands import normzoo

pytest.importorskip("shtab")

ASK = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
_shtab_normzoo
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = normzoo("completion", "bash")
    assert result.status == 0, result.err
    file = tmp_path_factory.mktemp("completion") / "normzoo.bash"
    file.write_text(result.out)
    return file


@pytest.mark.parametrize(
    "words,proposed",
    [
        ("", {"fit", "resume", "test", "norms", "completion"}),
        ("re", {"resume", "replay", "report"}),
        ("report --out", {"--output"}),
        ("fit --model.net.no", {"--model.net.norm", "--model.net.norm_position"}),
        ("fit --model.net.norm Gr", {"GroupNorm"}),
        ("fit --model.net R", {"ResNet"}),
        ("fit --data Fa", {"FashionMNIST"}),
        ("fit --trainer.max_e", {"--trainer.max_epochs"}),
        ("test --ckpt", {"--ckpt_path"}),
        ("norms WeightN", {"WeightNorm"}),
        ("claims bn", {"bn-sigmoid"}),
    ],
)
def test_a_shell_completes(words: str, proposed: set[str], script: Path) -> None:
    line = ["bash", "-c", ASK, "bash", str(script), "normzoo", *words.split(" ")]
    replies = set(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split())
    assert replies >= proposed
    assert all(reply.startswith(words.split(" ")[-1]) for reply in replies)


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_there_is_a_script_for_other_shells(shell: str) -> None:
    out = normzoo("completion", shell).out
    assert "normzoo" in out
    assert "--model.net.norm" in out
