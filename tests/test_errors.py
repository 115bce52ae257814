"""What errors are found in."""

from __future__ import annotations

from mesh.errors import first_leaf


def test_the_first_leaf_of_nested_groups_is_found_and_a_single_error_is_its_own() -> None:
    wanted = ValueError()
    assert first_leaf(BaseExceptionGroup("", [ExceptionGroup("", [wanted, KeyError()]), OSError()])) is wanted
    assert first_leaf(wanted) is wanted
