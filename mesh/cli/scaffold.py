"""`mesh new subnet NAME`: a package with a subnet that runs, to be made into yours."""

from __future__ import annotations

import keyword
import re
import sys
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

SUBNET = Template('''"""The $name subnet: nodes answer `echo` and earn for saying in each epoch that they are there."""

import trio
from pydantic import BaseModel

from mesh.chain.types import ONE, Score
from mesh.kad.validator import NamespaceRule
from mesh.rpc.servicer import RpcContext, Servicer, method


class Text(BaseModel):
    text: str = "hello"


class EchoServicer(Servicer):
    protocol = "/$name/1.0.0"

    @method(timeout_s=5.0)  # members only, unless `least` says otherwise
    async def rpc_echo(self, request: Text, ctx: RpcContext) -> Text:
        return request


class EchoSubnet:
    name, score_id, Config, jobs = "$name", "$name/1.0.0", Text, {}

    def rules(self, config):  # records of any other kind are refused
        return [NamespaceRule("$name", schema=Text, max_value_bytes=256, max_ttl_s=3600, max_records_per_owner=1)]

    def evidence_keys(self, epoch):
        return [b"$name/%d" % epoch]

    def servicers(self, ctx, config):
        return [EchoServicer()]

    async def run(self, ctx, config, *, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()
        async for epoch in ctx.epochs.each():
            await ctx.put_evidence(epoch, b"$name/%d" % epoch, config)

    def score(self, evidence):  # the same for every node: integers, from the evidence alone
        present = {record.owner for record in evidence.records}
        return [Score(node.node_id, ONE) for node in evidence.snapshot.nodes if node.peer_id in present]


subnet = EchoSubnet()
''')


def subnet(name: str, /, *, directory: Path | None = None) -> None:
    """Make a folder NAME with a complete subnet and its pyproject.toml.

    Args:
        name: A Python identifier in lower case.
        directory: Where to make the folder; default here.
    """
    from mesh.subnet import installed_subnets

    taken = (
        keyword.iskeyword(name)
        or name in sys.stdlib_module_names
        or name in ("mesh", "subnets", "tests", *installed_subnets())
    )
    if taken or not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name):
        raise ConfigError(
            f"{name!r} cannot be a subnet's name: take up to 32 lower-case letters, digits and _, and no name that a "
            "Python module has already"
        )
    root = (directory or Path()) / name
    if root.exists():
        raise ConfigError(f"{root} is already there: choose another name or --directory")
    (root / name).mkdir(parents=True)
    (root / "pyproject.toml").write_text(PYPROJECT.substitute(name=name))
    (root / name / "__init__.py").write_text(SUBNET.substitute(name=name))
    print(f"made {root}; next:")
    print(f"  pip install -e {root}")
    print(f"  mesh-server {name} --no_blockchain_rpc --new_swarm")
