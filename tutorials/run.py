"""Run the tutorials' notebooks, and keep in them what they print and draw.

    python tutorials/run.py                                 # all, in place: minutes each
    python tutorials/run.py --quick tutorials/01_*.ipynb    # the short runs of CI: nothing is kept

A notebook's cell tagged "parameters" holds its budgets; that cell's metadata holds the quick ones
under "quick". The exit status is 1 where a cell raises, and the traceback is printed.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Without widgets, tqdm warns as it is imported that its bars are plain ones; and on a core that
# another program has, a second thread makes steps as small as these many times as slow.
OF_KERNELS = {"PYTHONWARNINGS": "ignore:IProgress not found", "OMP_NUM_THREADS": "1"}
KEPT = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("notebooks", nargs="*", type=Path, help="all, where none is named")
    arguments.add_argument("--quick", action="store_true")
    options = arguments.parse_args()
    paths = options.notebooks or sorted(HERE.glob("*.ipynb"))
    if not paths:
        sys.exit(f"Found no notebook in {HERE}.")
    for name, value in OF_KERNELS.items():
        os.environ.setdefault(name, value)
    failed = [path.name for path in paths if not run(path, quick=options.quick)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(path, *, quick):
    """Run one notebook, say how long it took, and return whether it came to its end."""
    notebook = nbformat.read(path, as_version=4)
    if quick:
        shorten(notebook, path.name)
    start = time.perf_counter()
    try:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": HERE}}).execute()
    except CellExecutionError as error:
        print(f"{path.name}: {COLOUR.sub('', str(error))}", file=sys.stderr)
        return False
    print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
    if not quick:
        tidy(notebook)
        nbformat.write(notebook, path)
    return True


def shorten(notebook, name):
    """Set the quick budgets in the place of the others."""
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    if len(cells) != 1 or not cells[0].metadata.get("quick"):
        sys.exit(f"{name}: expected one cell tagged 'parameters' with quick ones in its metadata.")
    for budget, value in cells[0].metadata["quick"].items():
        cells[0].source += f"\n{budget} = {value!r}"


def tidy(notebook):
    """Drop what would differ from run to run."""
    notebook.metadata = nbformat.from_dict(KEPT)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)


if __name__ == "__main__":
    main()
