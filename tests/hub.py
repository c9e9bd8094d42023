"""huggingface.co for tests: repositories made of folders, and a cache that fills as they are asked.

It takes what `huggingface_hub.snapshot_download` takes, as far as we use it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path


@dataclass
class Hub:
    """`repositories` by name: files by the name they have there. `calls` went over the network."""

    cache: Path
    repositories: dict[str, dict[str, Path]]
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def download(
        self, name: str, *, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        folder = self.cache / name.replace("/", "--") / "snapshots" / ("0" * 40)
        if local_files_only:
            if not folder.is_dir():
                raise FileNotFoundError(f"{name} is not in the cache")
            return str(folder)
        self.calls.append((name, tuple(allow_patterns)))
        if name not in self.repositories:
            raise ConnectionError(f"401 for {name}")
        folder.mkdir(parents=True, exist_ok=True)
        for file, source in self.repositories[name].items():
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                shutil.copyfile(source, folder / file)
        return str(folder)

    def asked(self) -> list[str]:
        return [name for name, _ in self.calls]


def files(*folders: Path) -> dict[str, Path]:
    """All in these folders, under their own names."""
    return {p.name: p for folder in folders for p in sorted(folder.iterdir()) if p.is_file()}


def put(cache: Path, name: str, content: dict[str, Path]) -> None:
    """As the hub's library keeps it: files are links to what they hold."""
    folder, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    for path in (folder / "refs", folder / "blobs", folder / "snapshots" / commit):
        path.mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for number, (file, source) in enumerate(content.items()):
        shutil.copyfile(source, folder / "blobs" / str(number))
        (folder / "snapshots" / commit / file).symlink_to(folder / "blobs" / str(number))
