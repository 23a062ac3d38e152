"""Presets: published numbers of parameters, and the list of models."""

import json

import pytest

from jaxcredit.cli import main as cli
from jaxcredit.cli import models as listing
from jaxcredit.parallel import params
from jaxcredit.policy import presets, transformer

# Parameter counts of the published checkpoints, a tied unembedding counted once.

PUBLISHED = {
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1p7b": 1_711_376_384,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "llama3_1_8b": 8_030_261_248,
    "llama3_3_70b": 70_553_706_496,
    "mistral_7b": 7_248_023_552,
    "mistral_7b_v0_1": 7_241_732_096,
    "qwen2_5_0p5b": 494_032_768,
    "qwen2_5_1p5b": 1_543_714_304,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_72b": 72_706_203_648,
    "qwen3_0p6b": 596_049_920,
    "qwen3_1p7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    # These checkpoints include the vision tower and its projector.
    "gemma3_4b": 4_300_079_472,
    "gemma3_12b": 12_187_325_040,
    "gemma3_27b": 27_432_406_640,
}


def vision_parameters(width: int) -> int:
    """Parameters of Gemma 3's vision tower (SigLIP, 27 layers of width 1152) and its projector."""
    d, f = 1152, 4304
    layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    return 14 * 14 * 3 * d + d + 64 * 64 * d + 27 * layer + 2 * d + d * width + d


def test_presets_have_the_published_number_of_parameters():
    rows = {row["name"]: row for row in listing.rows()}
    counted = {name: row["parameters"] for name, row in rows.items()}
    for name in ("gemma3_4b", "gemma3_12b", "gemma3_27b"):
        counted[name] += vision_parameters(rows[name]["width"])
    assert counted == PUBLISHED
    assert presets.qwen3_8b(dtype="bfloat16", layers=2).dtype == "bfloat16"
    active = {
        name: row["active"] for name, row in rows.items() if row["active"] < row["parameters"]
    }
    assert {name: round(n / 1e9, 1) for name, n in active.items()} == {
        "qwen3_30b_a3b": 3.4,
        "qwen3_235b_a22b": 22.2,
    }  # Qwen: 3.3, 22


def test_models_are_listed(capsys):
    cli.main(["models", "gemma", "12b", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["hub"], row["cache_bytes_per_token"]) == (
        "google/gemma-3-12b-pt",
        2 * 48 * 8 * 256 * 2,
    )
    assert row["features"] == ["window 1024 in 5 of 6 layers", "q/k norm", "post-norms", "tied"]
    cli.main(["models", "qwen3", "b_a"])
    told = capsys.readouterr().out
    assert "30,532,122,624" in told and "8 of 128" in told and "llama" not in told
    with pytest.raises(SystemExit):
        cli.main(["models", "gpt5"])
    assert "unknown model gpt5" in capsys.readouterr().err


def test_micro_is_small_and_refuses_odd_heads():
    cfg = presets.micro(29)
    assert (cfg.vocab, cfg.width, cfg.layers, cfg.heads, cfg.forbidden) == (29, 64, 2, 4, (0,))
    assert 80_000 < params.count(transformer.specs(cfg)) < 200_000
    with pytest.raises(ValueError, match="width 64 over 3 heads"):
        presets.micro(29, heads=3)
