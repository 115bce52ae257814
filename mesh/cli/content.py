"""`mesh content`: put a file among a node's blobs, list them, get one from the network."""

from __future__ import annotations

import datetime
import json as jsonlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from mesh.cli.common import run_until_signalled
from mesh.errors import ConfigError, ContentNotFound, LocalProtocolError
from mesh.identity import PeerKey, load_peer_key

if TYPE_CHECKING:
    from mesh.content import Progress


def put(
    file: Path,
    /,
    *,
    data_dir: Path | None = None,
    identity_path: Annotated[Path | None, Parameter(alias="--identity")] = None,
    json: bool = False,
) -> None:
    """Copy a file into a node's blobs and print its digest, by which others get it.

    The node may be running: it serves the file at once. Nothing of the node's is removed to make room.

    Args:
        file: What to copy.
        data_dir: The node's --data-dir.
        identity_path: Its peer key file, when it runs without --data-dir.
        json: Print one JSON object.
    """
    from mesh.content import Access, BlobStore, put_file

    blobs = _blobs_of(data_dir, identity_path)
    if not blobs.parent.is_dir():
        raise ConfigError(f"{blobs.parent} is not there: start the node once, or look at its --data-dir again")
    store = BlobStore(blobs, access=Access.GUEST)
    made: list[bytes] = []

    async def main() -> None:
        with _bar(f"put {file.name}") as progress:
            made.append(await put_file(store, file, progress=progress))

    run_until_signalled(main)
    (digest,) = made
    print(jsonlib.dumps({"digest": digest.hex(), "bytes": store.size(digest)}) if json else digest.hex())


def get(
    digest: str,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    initial_peers: Annotated[tuple[str, ...], Parameter(env_var="PUBLIC_INITIAL_PEERS")] = (),
    identity_path: Annotated[Path | None, Parameter(alias="--identity")] = None,
    force: bool = False,
) -> None:
    """Get a blob from peers that have it, from all at once, into a file.

    Cut off, it goes on where it was when it is started again with the same file.

    Args:
        digest: 64 hexadecimal digits, as `mesh content put` prints them.
        output: The file; its name is the digest without one.
        initial_peers: Who may have it, /ip4/…/tcp/…/p2p/…; several are asked at the same time.
        identity_path: Peer key file of a node or client; a throwaway identity, which nodes on a chain refuse, without.
        force: Replace the file when it is there.
    """
    from mesh.client import parse_peers
    from mesh.content import MAX_BLOB_BYTES, parse_digest

    try:
        wanted = parse_digest(digest)
    except LocalProtocolError as error:
        raise ConfigError(str(error)) from error
    peers = parse_peers(initial_peers, flag="--initial_peers")
    path = output or Path(wanted.hex())
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already: give another file with -o, or --force to replace it")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"-o {path}: give a file in a folder that is there")
    identity = load_peer_key(identity_path) if identity_path else PeerKey.generate()
    free = shutil.disk_usage(path.absolute().parent).free
    got: list[int] = []

    async def main() -> None:
        from mesh.client import connect
        from mesh.content import Fetcher

        try:
            async with connect(peers, identity=identity) as client:
                with _bar(f"get {wanted.hex()[:16]}") as progress:
                    got.append(
                        await Fetcher(client.rpc).to_file(
                            wanted,
                            path,
                            max_bytes=min(free, MAX_BLOB_BYTES),
                            peers=client.peers,
                            progress=progress,
                        )
                    )
        except ContentNotFound as error:
            if identity_path is not None:
                raise
            raise ContentNotFound(
                f"{error} (nodes on a chain answer registered keys: give one with --identity)"
            ) from error

    run_until_signalled(main)
    print(f"{path}: {got[0]} bytes")


def ls(
    *,
    data_dir: Path | None = None,
    identity_path: Annotated[Path | None, Parameter(alias="--identity")] = None,
    json: bool = False,
) -> None:
    """List a node's blobs, the oldest first.

    Args:
        data_dir: The node's --data-dir.
        identity_path: Its peer key file, when it runs without --data-dir.
        json: Print one JSON array.
    """
    from mesh.content import Access, BlobStore

    directory = _blobs_of(data_dir, identity_path)
    entries = BlobStore(directory, access=Access.GUEST).entries() if directory.is_dir() else []
    if json:
        print(
            jsonlib.dumps(
                [
                    {"digest": e.digest.hex(), "bytes": e.size, "modified": e.modified_s, "whole": e.is_whole}
                    for e in entries
                ]
            )
        )
        return
    for entry in entries:
        when = datetime.datetime.fromtimestamp(entry.modified_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        print(f"{entry.digest.hex()}  {entry.size:>13}  {when}{'' if entry.is_whole else '  partial'}")
    if not entries:
        print(f"no blobs in {directory}", file=sys.stderr)


def _blobs_of(data_dir: Path | None, identity_path: Path | None) -> Path:
    """Where a node keeps its blobs. Raises ConfigError when the flags do not name a node's folder."""
    from mesh.chain.local import data_home

    if data_dir is None and identity_path is None:
        raise ConfigError("say whose blobs: --data-dir DIR of a node, or --identity_path FILE with its peer key")
    if data_dir is None:
        assert identity_path is not None
        data_dir = data_home() / "nodes" / str(load_peer_key(identity_path).peer_id)
    if data_dir.exists() and not data_dir.is_dir():
        raise ConfigError(f"--data-dir {data_dir} is no folder")
    return data_dir / "content"


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """A progress bar on stderr; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, size: progress.update(task, completed=done, total=size)
