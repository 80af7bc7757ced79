import re
from pathlib import Path

import rootlet_runtime
from rootlet_runtime import engines, errors


def test_the_table_of_contents_is_exact_and_sorted() -> None:
    for module in (rootlet_runtime, engines):
        assert module.__all__ == sorted(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)
    source = Path(rootlet_runtime.__file__).read_text().partition("__all__")[0]
    imported = set(re.findall(r"\b\w+\b", re.sub(r'""".*?"""|from [\w.]+ import', "", source)))
    assert imported == set(rootlet_runtime.__all__)


def test_every_error_is_in_the_tree_and_in_its_drawing() -> None:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(issubclass(error, errors.RootletError) for error in found)
    for error in found:
        assert error.__name__ in (errors.__doc__ or "")
        assert error.__doc__
