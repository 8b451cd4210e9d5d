"""The tutorial's notebook is its page: prose, code and what was printed."""

from __future__ import annotations

import json

import tutorial

PAGE = """# A page

```python
x = 2
print(x + 1)
```

```text
stale
```

Between.

```python
y = x * 3
```

```python
print(y)
```
"""


def test_blocks_share_names_and_what_they_print_stands_under_them():
    outputs = tutorial.printed(PAGE)
    assert outputs == ["3\n", "", "6\n"]
    made = tutorial.with_outputs(PAGE, outputs)
    assert made == PAGE.replace("stale", "3").rstrip("\n") + "\n\n```text\n6\n```\n"
    assert tutorial.with_outputs(made, outputs) == made


def test_a_notebook_has_prose_code_and_output_in_order():
    made = json.loads(tutorial.notebook(tutorial.with_outputs(PAGE, ["3\n", "", "6\n"])))
    kinds = ["markdown", "code", "markdown", "code", "code"]
    assert [cell["cell_type"] for cell in made["cells"]] == kinds
    code = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    assert ["".join(cell["source"]) for cell in code] == ["x = 2\nprint(x + 1)", "y = x * 3", "print(y)"]
    assert [[output["text"] for output in cell["outputs"]] for cell in code] == [[["3\n"]], [], [["6\n"]]]


def test_the_notebook_is_the_one_of_the_page():
    """Else run `make tutorial`."""
    assert tutorial.NOTEBOOK.read_text() == tutorial.notebook(tutorial.PAGE.read_text())
