"""What an overwatch node keeps between commit and reveal."""

from pathlib import Path

import pytest

from mesh.cli.overwatch import _Commitment, _Committed, _read
from mesh.errors import CallRefused
from mesh.identity import Overwrite, write_secret

MAX_SUBNETS = 1024


def test_weights_of_all_subnets_are_read_back_and_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "epoch-7-node-1.json"
    with pytest.raises(CallRefused, match=r"nothing was committed .* in overwatch epoch 7: .*epoch-7-node-1.json"):
        _read(path, 7)
    each = [_Committed(subnet_id=2**32 - 1 - n, weight=10**18, salt="0f" * 32) for n in range(MAX_SUBNETS)]
    kept = _Commitment(weights=tuple(each))
    write_secret(path, kept.model_dump_json().encode(), Overwrite.REFUSE)
    assert _read(path, 7) == kept
    path.write_text(path.read_text()[:-1])
    with pytest.raises(CallRefused, match="is damaged"):
        _read(path, 7)
