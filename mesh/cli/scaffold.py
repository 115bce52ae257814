"""`mesh new subnet NAME`: a package with a subnet that runs, to be made into yours."""

from __future__ import annotations

import keyword
from pathlib import Path
from string import Template

from mesh.errors import ConfigError

PYPROJECT = Template("""[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$name-subnet"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["mesh-subnets"]

[project.entry-points."mesh.subnets"]
$name = "$name:subnet"

[tool.hatch.build.targets.wheel]
packages = ["$name"]
""")

SUBNET = Template('''"""The $name subnet: each node answers `echo`, and earns by keeping its greeting in the DHT."""

from dataclasses import dataclass
from typing import ClassVar

import trio
from pydantic import BaseModel, ConfigDict

from mesh.auth.authorizer import PeerClass
from mesh.chain.types import Score
from mesh.kad.validator import NamespaceRule, pack_value
from mesh.rpc.servicer import Servicer, method

NAMESPACE = "$name"


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    greeting: str = "hello"


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    text: str


class Echo(Servicer):
    protocol = "/$name/echo/1.0.0"

    @method(least=PeerClass.MEMBER, timeout_s=5.0)
    async def rpc_echo(self, request: Text, ctx) -> Text:
        return request


@dataclass(frozen=True)
class Subnet:
    name: ClassVar[str] = "$name"
    score_id: ClassVar[str] = "$name-0.1.0"  # raise it whenever score() changes
    Config: ClassVar[type[BaseModel]] = Config

    def rules(self, config):
        return [NamespaceRule(NAMESPACE, schema=Text, max_value_bytes=256, max_ttl_s=600, max_records_per_owner=1)]

    def evidence_keys(self, epoch):
        return [f"{NAMESPACE}/{epoch}".encode()]

    def servicers(self, ctx, config):
        return [Echo()]

    async def run(self, ctx, config, *, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()
        epoch = -1
        while True:
            if ctx.epochs.position().epoch > epoch:
                epoch = ctx.epochs.position().epoch
                snapshot = await ctx.epochs.snapshot(epoch)
                peers = [node.peer_id for node in snapshot.validators(epoch)]
                value = pack_value(Text(text=config.greeting))
                await ctx.dht.put(self.evidence_keys(epoch)[0], value, ttl_s=300, peers=peers)
            await ctx.epochs.wait_block()

    def score(self, evidence):
        present = {record.owner for record in evidence.records}
        nodes = evidence.snapshot.validators(evidence.epoch)
        return [Score(node.node_id, 10**18) for node in nodes if node.peer_id in present]


subnet = Subnet()
''')


def subnet(name: str, /, *, directory: Path | None = None) -> None:
    """Make a folder NAME with a complete subnet and its pyproject.toml.

    Args:
        name: A Python identifier in lower case.
        directory: Where to make the folder; default here.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ConfigError(f"{name!r} cannot be a subnet's name: use lower-case letters, digits and _")
    root = (directory or Path()) / name
    if root.exists():
        raise ConfigError(f"{root} is already there: choose another name or --directory")
    (root / name).mkdir(parents=True)
    (root / "pyproject.toml").write_text(PYPROJECT.substitute(name=name))
    (root / name / "__init__.py").write_text(SUBNET.substitute(name=name))
    print(f"made {root}; next:")
    print(f"  pip install -e {root}")
    print(f"  mesh-server {name} --no_blockchain_rpc --new_swarm")
