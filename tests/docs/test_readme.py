"""What the README shows is what runs."""

import inspect
import random
import re
import types
from pathlib import Path

import trio

from mesh.auth.authorizer import Everyone
from mesh.cli import scaffold
from mesh.client import connect
from mesh.identity import PeerKey
from mesh.net.libp2p import Libp2pConfig, Libp2pNetwork
from mesh.rpc.rpc import Rpc

README = (Path(__file__).parents[2] / "README.md").read_text()
ECHO = re.search(r"```python\n(.*?)```", README, re.DOTALL)


def snippet() -> str:
    assert ECHO is not None
    return ECHO[1]


def test_the_echo_subnet_is_short_and_is_what_the_scaffold_makes() -> None:
    lines = [line for line in snippet().splitlines() if line.strip()]
    assert len(lines) < 40
    assert scaffold.SUBNET.substitute(name="echo").endswith("\n\n" + snippet())


def test_scaffold_makes_a_package_that_imports(tmp_path: Path) -> None:
    scaffold.subnet("mine", directory=tmp_path)
    code = (tmp_path / "mine" / "mine" / "__init__.py").read_text()
    module = types.ModuleType("mine")
    exec(compile(code, "mine", "exec"), module.__dict__)
    assert module.subnet.name == "mine"
    assert 'mine = "mine:subnet"' in (tmp_path / "mine" / "pyproject.toml").read_text()


async def test_the_calls_of_a_client_and_of_a_subnet_are_answered() -> None:
    """The README's, with `client`, and the subnet guide's, with `ctx`, of a server with the echo subnet's servicer."""
    guide = (Path(__file__).parents[2] / "subnets" / "README.md").read_text()
    calls = [
        call for text in (README, guide) for call in re.findall(r"`await ((?:client|ctx)\.[^`]*rpc_echo[^`]*)`", text)
    ]
    assert len(calls) == 2
    names: dict[str, object] = {}
    exec(compile(snippet(), "README.md", "exec"), names)
    net = Libp2pNetwork(PeerKey.dev("readme server"), Libp2pConfig(listen=("/ip4/127.0.0.1/tcp/0",)))
    server = Rpc(net, Everyone(), rng=random.Random(1))
    for servicer in names["subnet"].servicers(None, None):  # type: ignore[attr-defined]
        server.serve(servicer)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(net.run)
            await nursery.start(server.run)
            async with connect(
                [f"{net.local.addrs[0]}/p2p/{net.local.peer_id}"], identity=PeerKey.dev("readme client")
            ) as client:
                names |= {"client": client, "ctx": client, "peer": client.peers[0]}
                for call in calls:
                    answer = eval(call, names)
                    assert inspect.isawaitable(answer)
                    assert (await answer).text == "hello"
            nursery.cancel_scope.cancel()


def test_the_simulation_in_the_subnets_readme_runs() -> None:
    text = (Path(__file__).parents[2] / "subnets" / "README.md").read_text()
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    exec(compile(found[1], "subnets/README.md", "exec"), {})
