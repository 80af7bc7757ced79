"""Finished cells as JSON lines: an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Store:
    """Records by key, in one file that is only ever appended to.

    Args:
        path: the file; a last line that a crash cut short is ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            text = path.read_text()
            if text and not text.endswith("\n"):  # cut short: what follows starts its own line
                with path.open("a") as file:
                    file.write("\n")
            for line in text.splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self._records[record["key"]] = record

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._records[key]

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record, on the disk before the next one."""
        self._records[record["key"]] = record
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> list[dict[str, Any]]:
        """All of them, in the order in which they came."""
        return list(self._records.values())
