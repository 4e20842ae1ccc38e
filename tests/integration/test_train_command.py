"""`colazip train`, as installed: a model of seconds that packs, finds and reads back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.tiny_model import write_corpus

ROOT = Path(__file__).parents[2]


def colazip(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "colazip", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_train_pack_search_unpack(tmp_path: Path) -> None:
    train, validation = write_corpus(tmp_path)
    out = tmp_path / "run"
    done = colazip("train", "tiny", "--data", train, "--validation", validation, "-o", out, "--steps", 20)
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in (out / "vae" / "metrics.jsonl").read_text().splitlines()]
    figures = [e for e in entries if "validation" in e]
    assert figures and figures[-1]["total_bpb"] > 0
    model = out / "model"
    card = (model / "README.md").read_text()
    assert "colazip train tiny" in card and str(tmp_path) not in card
    archive = tmp_path / "a.cola"
    assert colazip("pack", train, "-o", archive, "--model", model).returncode == 0
    back = tmp_path / "back.jsonl"
    assert colazip("unpack", archive, "-o", back, "--model", model).returncode == 0
    texts = [[json.loads(line)["text"] for line in p.read_text().splitlines()] for p in (train, back)]
    assert texts[0] == texts[1]
    described = json.loads(colazip("model", model, "--json").stdout)
    assert described["name"] == "tiny"

    refused = colazip("train", "tiny", "--data", train, "--validation", validation, "-o", out)
    assert refused.returncode == 1 and "--resume" in refused.stderr
    resumed = colazip(
        "train", "tiny", "--data", train, "--validation", validation, "-o", out, "--steps", 20, "--resume"
    )
    assert resumed.returncode == 0 and described["id"] in resumed.stderr


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    train, validation = write_corpus(tmp_path)
    for arguments, code, word in (
        (("nonsense", "--data", train), 2, "no recipe"),
        (("tiny", "--data", tmp_path / "none.jsonl"), 1, "no such file"),
        (("tiny", "--data", train, "--text-column", "body"), 1, "'body'"),
        (("tiny", "--data", train, "--teacher", tmp_path), 1, "no model.safetensors"),
        (("tiny", "--data", train, "--resume", "--init", tmp_path / "x.pt"), 1, "x.pt"),
    ):
        failed = colazip("train", *arguments, "--validation", validation, "-o", tmp_path / "out")
        assert failed.returncode == code, failed.stderr
        assert word in failed.stderr and "Traceback" not in failed.stderr
