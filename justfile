# A few verbs; `just` lists them. All use the virtual environment of the README.
bin := ".venv/bin"

default:
    @just --list

# Make the virtual environment
setup:
    python3 -m venv .venv && {{bin}}/pip install -q -e ".[server,dev]"

# Run the demo
demo *args:
    {{bin}}/rootlet demo {{args}}

# Run the tests; .ci/long runs those that this leaves out
test *args:
    {{bin}}/python -m pytest {{args}}

# Format and mend what can be mended
fix:
    {{bin}}/ruff check --fix && {{bin}}/ruff format

# Lint, types and architecture
check:
    {{bin}}/ruff check && {{bin}}/ruff format --check && {{bin}}/mypy && {{bin}}/lint-imports

# Everything that must pass
ci:
    bash .ci/run
