"""Nothing that reads bytes runs what is in them: no pickle, by any of its names, in any package."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile"}
# A simulation hands its own population to its own worker processes, as multiprocessing does; no
# byte of it comes from a device, a server or a file.
OWN_PROCESSES = {"server/rootlet_server/simulation/crews.py"}
SOURCES = sorted(
    path for folder in ("device_runtime", "sdk", "server") for path in (ROOT / folder).rglob("*.py")
)


def faults(source):
    """What a module does that could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if each.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS:
                found.append(name)
            keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
            if keywords.get("allow_pickle", "False") != "False":
                found.append(f"{name}(allow_pickle=...)")
            if name.endswith("torch.load") and keywords.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_reads_no_pickle_and_runs_no_text(path):
    allowed = ["pickle"] if str(path.relative_to(ROOT)) in OWN_PROCESSES else []
    assert faults(path.read_text()) == allowed


def test_the_check_finds_what_it_looks_for():
    bad = (
        "import pickle", "from joblib import load", "eval('1')", "np.load(p, allow_pickle=True)",
        "torch.load(p)", "exec(code)",
    )  # fmt: skip
    assert all(faults(source) for source in bad)
    assert faults("np.load(p, allow_pickle=False)\nre.compile('a')") == []
