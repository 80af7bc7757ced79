"""The command line: one clean line for a refusal, and no server library where none is needed."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from rootlet_runtime.errors import RootletError
from rootlet_server import cli, cli_serve

ROOT = Path(__file__).parents[2]
HEAVY = ("flwr", "matplotlib", "onnx", "onnxruntime", "onnxscript", "rich", "sklearn", "torch")
SERVE = ["serve", "--bundle", "b", "--trusted-key", "k.pem", "--signing-key", "s.pem"]


def run_in_python(source):
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "imported",
    [
        "rootlet_server",
        "rootlet_server.federation",
        "rootlet_server.cli_serve",
        "rootlet_server.cli_simulate",
        "rootlet_server.simulation",
        "rootlet_server.cli",
    ],
)
def test_importing_loads_no_library_of_the_server(imported):
    done = run_in_python(f"import sys, {imported}; print(sorted({set(HEAVY)} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_version_is_the_distributions(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out.strip() == project["version"]


@pytest.mark.parametrize("command", ["bundle", "demo", "device", "serve", "simulate"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code == 0
    assert f"rootlet {command}" in capsys.readouterr().out


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([])
    assert exit_.value.code == 2


def raising(error):
    def run(_arguments):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RootletError("no such key"), 1, "rootlet: no such key\n"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch.nn"),
            1,
            "rootlet: this command needs torch, which is not installed; run: "
            'pip install "rootlet[server]"\n',
        ),
        (
            PermissionError(13, "Permission denied", "/out"),
            1,
            "rootlet: /out: Permission denied; give a path that this user can read and write\n",
        ),
        (OSError("no route"), 1, "rootlet: no route\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr(cli_serve, "run_serve", raising(error))
    assert cli.main(SERVE) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)


def test_the_options_of_a_strategy_are_read_as_pairs(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(cli_serve, "run_serve", lambda arguments: given.append(arguments) or 0)
    options = ["--strategy", "fedadam"]
    options += ["--strategy-option", "eta=0.1", "--strategy-option", "tau=1"]
    assert cli.main([*SERVE, *options, "--select", "camera", "--select", "night"]) == 0
    (arguments,) = given
    assert dict(arguments.strategy_option) == {"eta": "0.1", "tau": "1"}
    assert arguments.select == ["camera", "night"]
    with pytest.raises(SystemExit):
        cli.main([*SERVE, "--strategy-option", "eta"])
    assert "'eta' is not KEY=VALUE" in capsys.readouterr().err


def test_a_module_of_ours_that_is_missing_is_a_bug_and_not_hidden(monkeypatch):
    monkeypatch.setattr(cli_serve, "run_serve", raising(ModuleNotFoundError("x", name="x")))
    with pytest.raises(ModuleNotFoundError):
        cli.main(SERVE)


def test_without_the_server_extra_serve_gives_the_pip_line():
    done = run_in_python(
        "import importlib.metadata as m, sys\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'flwr': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from rootlet_server.cli import main\n"
        f"sys.exit(main({SERVE}))"
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("rootlet: federation needs flwr")
    assert 'pip install "rootlet[server]"' in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["on", "a,b", "a,b,c,d"])
def test_a_tls_choice_that_is_none_is_refused(text, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([*SERVE, "--tls", text])
    assert exit_.value.code == 2
    assert "is not off, auto, or CA,CERT,KEY" in capsys.readouterr().err


def test_a_missing_key_file_is_one_line(tmp_path, capsys):
    arguments = [*SERVE, "--state-dir", str(tmp_path / "state")]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("rootlet: k.pem: cannot be read")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--evaluate-data", "wide.npz", "x: shape (2, 999)"),
        ("--evaluate-data", "absent.npz", "numpy.savez"),
        ("--out", "a-file/improved.rootlet", "a-file: "),
    ],
)
def test_what_would_fail_after_the_rounds_is_refused_before_them(
    mlp_bundle, tmp_path, capsys, option, value, line
):
    np.savez(tmp_path / "wide.npz", x=np.zeros((2, 999), np.float32), y=np.zeros(2, np.int64))
    (tmp_path / "a-file").touch()
    arguments = [
        *("serve", "--bundle", str(mlp_bundle.path)),
        *("--trusted-key", str(mlp_bundle.public_key_path)),
        *("--signing-key", str(mlp_bundle.signing_key_path)),
        *("--state-dir", str(tmp_path / "state"), option, str(tmp_path / value)),
    ]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert line in captured.err
    assert captured.err.count("\n") == 1


def test_a_folder_that_the_demo_cannot_make_is_refused_before_torch_is_loaded(tmp_path):
    (tmp_path / "taken").write_text("a file")
    source = (
        "import sys; from rootlet_server.cli import main; "
        f"code = main(['demo', '--out', {str(tmp_path / 'taken' / 'demo')!r}]); "
        "print(code, 'torch' in sys.modules)"
    )
    done = run_in_python(source)
    assert done.stdout == "1 False\n"
    assert "taken" in done.stderr
