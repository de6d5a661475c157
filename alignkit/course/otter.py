"""The student version of a notebook for otter-grader (https://otter-grader.readthedocs.io).

    DIR/PART/NN-slug/NN-slug.ipynb    asks `grader.check` after each exercise
    DIR/PART/NN-slug/tests/NAME.py    a test an exercise, which says what our checks say

`otter generate` makes an autograder of such a folder. Otter runs students' code and the
right answers in one process: for marks that count, `alignkit grade` is the safer one.
"""

import re
from pathlib import Path

from nbformat import v4

from .grade import exercises_of
from .notebook import _save, _write, read, student, stub_name, tags_of

INIT = '''import otter

grader = otter.Notebook("{name}.ipynb")'''
TEST = '''from otter.test_files import test_case

OK_FORMAT = False
name = "{exercise}"
points = 1


@test_case()
def test_{exercise}({exercise}):
    from alignkit.course import {module}

    {module}.{exercise}.grade({exercise})
'''


def otter_version(path: Path, out: Path) -> Path:
    """Write `path`'s student version and its tests into the folder `out`; the notebook.

    Raises ValueError for a notebook without exercises that the package knows.
    """
    slug = path.stem.partition("-")[2]
    known = exercises_of(slug)
    made = student(path, out / path.name)
    book = read(made)
    cells = []
    for cell in book.cells:
        cells.append(cell)
        if "setup" in tags_of(cell):
            cells.append(v4.new_code_cell(INIT.format(name=path.stem)))
        if "exercise" in tags_of(cell) and (name := stub_name(cell.source)) in known:
            cells.append(v4.new_code_cell(f'grader.check("{name}")'))
            _save(TEST.format(exercise=name, module=re.sub("-", "_", slug)),
                  out / "tests" / f"{name}.py")
    book.cells = cells
    return _write(book, made)
