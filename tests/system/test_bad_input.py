"""A few of the cases of tools/stress/bad_values.py, the same ones in every run; secrets; the number of data workers."""

import pytest

import bad_values
from fedpara.runs import CHECKPOINT
from fedpara.storage import read_tensors
from helpers.cases import thinned
from helpers.federations import same
from helpers.runs import rows_without_times
from helpers.shell import SMALL


@pytest.mark.parametrize("number", thinned(range(12)))
def test_any_key_with_any_value_trains_or_ends_in_one_line(monkeypatch, number):
    monkeypatch.setenv("PROJECT_ROOT", "")  # put back after
    case = bad_values.drawn(number)
    status, lines = bad_values.attempt(case)
    assert bad_values.is_right(case, status, lines), (case, status, lines)


@pytest.mark.slow
def test_secrets_are_in_no_file_of_a_run(shell, tmp_path, monkeypatch):
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    status, error, out = shell(*SMALL, "logger=wandb")
    assert status == 0, error
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if key.encode() in path.read_bytes()]
    assert key not in error + out


@pytest.mark.slow
def test_any_number_of_data_workers_gives_the_same_bits(shell, tmp_path):
    folders = [tmp_path / str(num_workers) for num_workers in (0, 2)]
    for folder in folders:
        arguments = [*SMALL, f"data.num_workers={folder.name}", f"hydra.run.dir={folder}", "federation.num_rounds=1"]
        assert shell(*arguments)[0] == 0
    assert rows_without_times(folders[0]) == rows_without_times(folders[1])
    first, second = (read_tensors(folder / CHECKPOINT, {})[0] for folder in folders)
    assert same(first, second)
