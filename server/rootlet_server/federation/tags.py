"""Device tags: the operator's own words about devices, in one TOML file.

```toml
camera = ["front.pub", "yard.pub"]   # tag = the files of device public keys that carry it
charged-at-night = ["yard.pub"]
```

The operator says what a device is, and the device's key says which one it is: a device cannot give
itself a tag.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from rootlet_server.errors import ServeConfigError


def read_tags(path: Path, known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The key files of each tag.

    Args:
        path: The TOML file.
        known: Names of the key files that there are.

    Raises:
        ServeConfigError: it cannot be read, or names a key file that there is not.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ServeConfigError(
            f"{path} is not a file of tags ({error}); write TOML: camera = ['front.pub']"
        ) from None
    for tag, names in found.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ServeConfigError(
                f"{path}: tag {tag!r} is {names!r:.80}; it must be a list of key files, such as "
                "['front.pub']"
            )
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ServeConfigError(
                f"{path}: tag {tag!r} names {unknown[0]!r}, which is not among the device keys: "
                f"{', '.join(sorted(known))[:300]}"
            )
    return {tag: tuple(names) for tag, names in found.items()}


def select(tags: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> set[str]:
    """The key files that carry every wanted tag.

    Raises:
        ServeConfigError: a tag that nobody carries.
    """
    for tag in wanted:
        if not tags.get(tag):
            raise ServeConfigError(
                f"select is {tag!r}, which no device carries; there are: "
                f"{', '.join(sorted(tags)) or 'no tags'}"
            )
    return set.intersection(*(set(tags[tag]) for tag in wanted))
