"""The example programs, run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from lightning_hnd import Dissection

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_dissect_pretrained(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU())\n"
    )
    torch.manual_seed(0)  # no unit of it is dead
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU()).state_dict(), tmp_path / "weights.pth")
    program = [sys.executable, EXAMPLES / "dissect_pretrained.py", "my_models:net", "weights.pth", folder]
    report = tmp_path / "dissection"
    for options, asked in (["--fresh-networks", "0"], False), ([], True):
        command = [*program, "--size", "24", "32", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "live units interpretable (rule readme)" in done.stdout
        assert "(rule above_chance)" in done.stdout
        dissection = Dissection.load(report / "dissection.hnd")
        assert list(dissection.layers) == ["1"]
        assert dissection["1"].asked_fresh is asked
    assert "| unit | region |" in (report / "assignments.md").read_text()
    for picture in ("1-concepts.png", "1-overlays.png"):
        with Image.open(report / picture) as image:
            assert image.width > 300


def test_quickstart(tmp_path: Path) -> None:
    program = [sys.executable, EXAMPLES / "quickstart.py", "--epochs", "1", "--faces", "130", "--logs", tmp_path]
    program += ["--shown", "100"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "At start" in done.stdout
    assert len(list(tmp_path.glob("*/*/hnd/*.hnd"))) == 2


@pytest.mark.parametrize(
    ("name", "strengths", "columns"),
    [("skin_tone", ["1"], 12), ("glasses", ["1"], 8)],  # of a group's concept, the encoding
)
def test_controlled_experiment(tmp_path: Path, name: str, strengths: list[str], columns: int) -> None:
    program = [sys.executable, EXAMPLES / "bias" / f"{name}.py", "--strengths", *strengths, "--seeds", "1"]
    options = ["--epochs", "1", "--faces", "32", "--shown", "160", "--out", tmp_path / "shown"]
    done = subprocess.run([*program, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("| 1.0 | 1 |"))
    assert row.count("|") == columns + 1
    with Image.open(tmp_path / "shown" / "emergence.png") as image:
        assert image.width > 300


def test_too_few_faces_to_tell_the_cue_are_refused_by_name() -> None:
    program = [sys.executable, EXAMPLES / "bias" / "glasses.py", "--shown", "100"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "100 faces are too few to tell what Eyeglasses does: show more (--shown)" in done.stderr


def test_ablation_of_a_cue() -> None:
    program = [sys.executable, EXAMPLES / "bias" / "ablation.py", "--experiment", "age", "--strengths", "1"]
    options = ["--seeds", "1", "--epochs", "1", "--faces", "200", "--shown", "300"]
    done = subprocess.run([*program, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "without its units of age" in done.stdout
    (row,) = (line for line in done.stdout.splitlines() if "1 of 1" in line)
    assert row.count(" -> ") == 3  # of both sides and the gap
