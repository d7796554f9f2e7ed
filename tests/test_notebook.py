"""examples/notebook.ipynb runs from top to bottom on a finished run, and shows what it promises."""

from pathlib import Path

import pytest

from helpers.project import make_project, run_to_the_end

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


def test_the_notebook_runs_on_a_finished_run(tmp_path):
    project = tmp_path / "runs" / "demo"
    run_to_the_end(make_project(project, output_dir=str(project / "classification")))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    assert "scd-aw/seed-0 is the best student on validation" in shown[0]
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 5
    assert shown[2].count("stage ") == 2 and "R(S) - R(T) = " in shown[4]
    assert shown[-1].count(" -> ") == 2
