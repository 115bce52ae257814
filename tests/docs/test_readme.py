"""What the README shows is what runs."""

import re
import types
from pathlib import Path

from mesh.cli import scaffold

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


def test_the_simulation_in_the_subnets_readme_runs() -> None:
    text = (Path(__file__).parents[2] / "subnets" / "README.md").read_text()
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    exec(compile(found[1], "subnets/README.md", "exec"), {})
