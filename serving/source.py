"""Where a model's files come from: a folder on this machine, or blocks of the mesh.

Blocks are not copied: the folder of a model of the mesh is links into the peer's store.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import anyio.to_thread

from lattica.identity.keys import PeerId
from lattica.store.blocks.manifest import is_manifest_id
from serving.errors import ModelDirError, WeightsError
from serving.loading import ModelFolder, is_weight_file
from serving.ports import MeshPeer
from serving.roster import Roster
from serving.span import Span

FIND_TIMEOUT = 10.0  # seconds for the roster to arrive and name the model


class ModelSource:
    """One model, by folder, by name or by the id of its files."""

    def __init__(
        self,
        peer: MeshPeer,
        source: Path | str,
        *,
        name: str | None = None,
        by_name: bool = False,
    ) -> None:
        """`source`: a folder, a name, or an id (`b3-…`). `by_name`: it is a name, never a path.

        Raises:
            ModelDirError: `source` is written as a path and there is no such folder.
        """
        self._peer = peer
        is_path = isinstance(source, Path) or (not by_name and _is_path(source))
        self._own = Path(source) if is_path else None
        if self._own is not None and not self._own.is_dir():
            raise ModelDirError(
                f"there is no model directory {self._own}; give the path of a folder with "
                "config.json and *.safetensors, or the name of a model that the mesh serves"
            )
        is_id = self._own is None and not by_name and is_manifest_id(str(source))
        self.name = name or (self._own.resolve().name if self._own else str(source))
        self.manifest = str(source) if is_id else ""
        self._holders: list[PeerId] = []
        self._files: list[str] = []
        self.provided: Counter[str] = Counter()  # bytes fetched, by the provider's PeerId

    async def open(self, roster: Roster) -> ModelFolder:
        """The folder, complete but for weights that are not here yet.

        Raises:
            ModelDirError, WeightsError, UnsupportedModelError: see `ModelFolder`.
            UnknownModelError: the mesh has no model of that name.
            BlockMissingError: nobody has its files any more.
        """
        if self._own is not None:
            folder = await anyio.to_thread.run_sync(ModelFolder, self._own)
            absent = set(folder.weight_files()) - set(folder.present_weights())
            if absent:
                raise WeightsError(f"{self._own} lacks {', '.join(sorted(absent))}")
            self.manifest = await self._peer.blocks.add(self._own)
            return folder
        if not self.manifest:
            self.manifest = (await roster.find_model(self.name, FIND_TIMEOUT)).manifest
        # Whoever claims to serve it has (some of) its files, should the DHT not know yet.
        claims = roster.claims().items()
        self._holders = [peer for peer, info in claims if info.manifest == self.manifest]
        manifest = await self._peer.blocks.manifest(self.manifest, providers=self._holders)
        self._files = [file.path for file in manifest.files]
        here = await self._fetch([path for path in self._files if not is_weight_file(path)])
        return await anyio.to_thread.run_sync(ModelFolder, here)

    async def fetch_weights(self, folder: ModelFolder, span: Span | None) -> dict[str, int]:
        """Get the weight files of `span` (None: all). Returns bytes by provider so far."""
        if self._own is None:
            wanted = [path for path in self._files if is_weight_file(path)]
            if folder.has_index:
                wanted = folder.weight_files(span)
            if wanted:
                await self._fetch(wanted)
        return dict(self.provided)

    async def _fetch(self, files: list[str]) -> Path:
        blocks = self._peer.blocks
        folder = await blocks.path(self.manifest, files, providers=self._holders)
        report = blocks.report(self.manifest)
        if report is not None:
            self.provided.update({str(peer): n for peer, n in report.provided.items()})
        return folder


def _is_path(source: str) -> bool:
    return "/" in source or source in (".", "..") or Path(source).is_dir()
