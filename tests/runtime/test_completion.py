"""The script that completes a command line, as bash runs it."""

import shutil
import subprocess

import pytest

from masksearch_jax.runtime import completion


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell in completion.SHELLS:
        (folder / shell).write_text(completion.script(shell))
    return folder


def completed(scripts, line: str, folder=None) -> list[str]:
    """What bash offers for the end of a line."""
    program = (
        f'source "{scripts}/bash"; COMP_LINE="$1" COMP_POINT=${{#1}}; _masksearch; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", line],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder or scripts,
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("masksearch train", ["train-dapo", "train-sft"]),
        ("masksearch --co", ["--completion"]),
        ("masksearch train-dapo --config=qa_", ["qa_dapo", "qa_sft"]),
        ("masksearch train-dapo --config=qa_dapo:qwen2.5-1", ["qwen2.5-1.5b", "qwen2.5-14b"]),
        ("masksearch study --config=configs/study.py:recipe,gp", ["recipe,gpu"]),
        ("masksearch coverage --config=coverage:", []),
        (
            "masksearch train-dapo --config=qa_dapo --config.dapo.kl=",
            ["none", "k1", "k3", "positive"],
        ),
        ("masksearch train_dapo --config.dapo.kl=k", ["k1", "k3"]),
        ("masksearch train-dapo --config.dapo.kl_", ["--config.dapo.kl_weight="]),
        ("masksearch train-dapo --config.dapo.overlong_filter=T", ["True"]),
        ("masksearch train-sft --config.dapo.kl_", []),
        ("masksearch evaluate --help=ju", ["judge"]),
        ("masksearch evaluate --pri", ["--print-config"]),
        ("masksearch evaluate --che", ["--check"]),
        ("masksearch train-dapo --config.tokenizer=ba", ["bash"]),  # a file of the folder
    ],
)
def test_bash_offers_mains_configs_keys_and_choices(scripts, line, offered):
    assert completed(scripts, line) == offered


def test_bash_knows_the_function_by_the_command(scripts):
    program = f'source "{scripts}/bash"; complete -p masksearch'
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True)
    assert done.stdout == "complete -F _masksearch masksearch\n"


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not on this machine")
def test_zsh_offers_whole_words(scripts):
    """Which of them begin as typed, zsh finds out itself."""
    program = (
        f'autoload -U compinit; compinit -u; source "{scripts}/zsh"; COMP_LINE="$1" '
        "COMP_POINT=${#1}; COMPREPLY=(); _masksearch; print -l -- $COMPREPLY"
    )
    line = "masksearch train-dapo --config.dapo.kl="
    command = ["zsh", "-f", "-c", program, "zsh", line]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == [
        f"--config.dapo.kl={x}" for x in ("none", "k1", "k3", "positive")
    ]
    assert not done.stderr
