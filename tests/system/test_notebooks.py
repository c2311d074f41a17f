"""Notebooks run from top to bottom, and are kept without outputs."""

import nbformat
import pytest
from nbclient import NotebookClient

from helpers import ROOT

SHOWN = {
    "fedpara_in_ten_minutes": [
        "4,000            20           100",
        "merged outputs equal: True",
        "round 5: ",
    ],  # Fig. 6
    "rank_sweep": ["15 runs: finished", "gamma=0.1: 52,314 parameters", "image/png", "report.html"],
    "personalisation": ["pFedPara    travels  50 %", "local only  travels   0 %  sent   0.0 MB", "image/png"],
}


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs_and_is_stored_clean(path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = str([cell.outputs for cell in code])
    for expected in SHOWN[path.stem]:
        assert expected in outputs
