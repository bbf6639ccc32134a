"""The notebook in the documentation runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_has_outputs_and_no_errors() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    assert not any(out.output_type == "error" for cell in cells for out in cell.outputs)
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the Jupyter client, about sockets
def test_every_cell_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}})
    client.execute()
    (labels,) = (out for out in notebook.cells[-1].outputs if out.output_type == "execute_result")
    assert labels.data["text/plain"].startswith("(['zero', ")
