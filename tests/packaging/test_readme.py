"""The README's commands and snippets are the ones that work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def _commands() -> dict[str, str]:
    return dict(re.findall(r"<!-- command: (\w+) -->\n```sh\n(.*?)\n```", README, flags=re.DOTALL))


def test_there_are_exactly_two_commands() -> None:
    assert set(_commands()) == {"demo", "test"}
    assert all("\n" not in command for command in _commands().values())


def test_ci_takes_its_command_from_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "command: test" in script
    assert "pytest" not in script


def test_shell_commands_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    from rootlet_server.cli import build_parser

    monkeypatch.setenv("COLUMNS", "200")
    text = "\n".join(_blocks("sh")).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("rootlet ")]
    assert len(lines) >= 3
    for line in lines:
        build_parser().parse_args(shlex.split(line)[1:])


def test_compile_and_embed_snippets_run(
    mlp_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    embed, compile_ = _blocks("python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "publisher.pub.pem").write_bytes(mlp_bundle.public_key_path.read_bytes())
    (tmp_path / "publisher.pem").write_bytes(mlp_bundle.signing_key_path.read_bytes())
    model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
    exec(compile_, {"model": model, "x": mlp_bundle.x})  # noqa: S102
    joining = [line for line in embed.splitlines() if "client.join" in line]
    assert len(joining) == 1
    embed = embed.replace(joining[0], "")  # there is no such server; tests/integration joins one
    scope = {"picture": mlp_bundle.x[0]}
    exec(embed, scope)  # noqa: S102
    assert scope["probabilities"].shape == (10,)
    assert np.isclose(scope["probabilities"].sum(), 1)
