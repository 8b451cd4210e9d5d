"""`kill -9` at any moment leaves a folder from which the same run goes on to the same numbers.

A sample of moments; `python killing.py FOLDER 0 1 disk` tries every one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_networks import differing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forked")
@pytest.mark.parametrize(("kind", "first", "stride"), [("disk", 0, 29), ("host", 3, 17), ("again", 5, 37)])
def test_a_run_killed_twice_ends_as_if_it_never_was(tmp_path, kind, first, stride):
    """While drawing, in a step, in the middle of a save or a rename, between a part's end and its file, in a cache."""
    script = Path(__file__).with_name("killing.py")
    path = os.pathsep.join([str(script.parent), str(script.parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path), str(first), str(stride), kind],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    expected = load_file(tmp_path / "never.end")
    ends = sorted(tmp_path.glob("at-*.end"))
    assert len(ends) >= 3
    for end in ends:
        assert differing(expected, load_file(end)) == [], end.name
    left = [path.name for path in (tmp_path / "at-0000").iterdir()] if first == 0 else []
    assert not [name for name in left if name.startswith(".writing")], "drafts are gone"
