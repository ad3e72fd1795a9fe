"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.slow
def test_code_of_the_readme_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where the checkpoint goes
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 8
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["result"].elbo == pytest.approx(-31.4, abs=0.2)
    assert names["idata"]["posterior"]["theta"].shape == (4, 1000, 8)
    assert abs(float(names["idata"]["posterior"]["mu"].mean()) - 4.4) < 0.3
    assert (names["new"] - torch.tensor([0.44, 1.8])).abs().max() < 0.2
    assert names["more"].shape == (100, 2)
