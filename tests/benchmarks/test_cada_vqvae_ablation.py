"""The ablation's rows are settings that exist, its cells are told apart, its page keeps foreign text."""

import json

import pytest
import torch
from benchmarks.ablation import merged, write_between
from benchmarks.cada_vqvae_ablation import (
    BASE_ROW,
    COLUMNS,
    MARKERS,
    QUESTIONS,
    UNTRAINED,
    Variant,
    cell_name,
    last_terms,
    main,
    nearest_neighbours,
    settings_of,
    table,
)

from fewgen.config import load_preset, resolve
from fewgen.errors import ConfigError
from fewgen.methods.cada_vqvae.config import CadaVqVaeConfig

ROWS = [(question, row) for question in QUESTIONS for row in question.rows]


@pytest.mark.parametrize(("question", "row"), ROWS, ids=[f"{q.key}-{r.name}" for q, r in ROWS])
def test_each_row_is_a_valid_configuration_without_a_second_level(question, row):
    preset = load_preset("cada_vqvae", row.preset)["model"]
    config = resolve(CadaVqVaeConfig, preset, settings_of(row), where="model")
    assert config.spatial is None
    assert config.image.backbone == "mlp"


def test_rows_have_cells_of_their_own_and_the_base_has_one():
    names = {row.name: cell_name(row) for _, row in ROWS if row != BASE_ROW}
    by_settings = {cell_name(row) for _, row in ROWS}
    assert cell_name(BASE_ROW) in by_settings
    assert cell_name(BASE_ROW) not in names.values()
    assert cell_name(Variant("a", {"prior": "standard"})) != cell_name(Variant("a", {"prior": "conditional"}))
    assert cell_name(Variant("a", shots=3)) != cell_name(Variant("a", shots=5))
    for question in QUESTIONS:
        assert len({cell_name(row) for row in question.rows}) == len(question.rows)


def test_settings_are_merged_section_by_section():
    assert merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "c": 6}) == {
        "a": {"x": 1, "y": 5},
        "b": 3,
        "c": 6,
    }
    assert settings_of(Variant("u", UNTRAINED))["image"] == {"backbone": "mlp"}


def test_neighbours_vote_and_the_nearer_ones_break_a_tie():
    train = torch.tensor([[0.0], [1.0], [10.0], [11.0], [12.0]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    test = torch.tensor([[0.4], [11.0], [3.0], [8.0]])
    assert nearest_neighbours(train, labels, test, 3).tolist() == [0, 1, 0, 1]
    # Two of each: 1 is at 1 and 0.
    assert nearest_neighbours(train[:4], labels[:4], torch.tensor([[2.0], [9.0]]), 4).tolist() == [0, 1]


def test_the_last_terms_are_means_of_the_training_lines(tmp_path):
    lines = [{"kind": "train", "vae/kl": float(i), "vae/weight/kl": 9.0, "vae/total": 1.0} for i in range(8)]
    text = "\n".join(json.dumps(line) for line in [*lines, {"kind": "stage_end", "best_step": None}])
    (tmp_path / "metrics.jsonl").write_text(text)
    assert last_terms(tmp_path, 2) == {"kl": 6.5, "total": 1.0}


def test_a_table_shows_mean_and_spread_and_a_dash_for_what_is_missing():
    question = QUESTIONS[0]
    figures = {key: 0.5 for _, key, _, _ in COLUMNS}
    cells = {
        (cell_name(BASE_ROW), seed): {"figures": {**figures, "agreement": 0.5 + 0.1 * seed}}
        for seed in (0, 1)
    }
    lines = table(question, cells).splitlines()
    assert lines[4].startswith("| base: everything mended | 2 | 55.0 ± 7.1 | 0.50 ± 0.00 |")
    assert lines[5].split(" | ")[1:4] == ["0", "-", "-"]


def test_the_page_keeps_what_people_wrote(tmp_path):
    page = tmp_path / "results" / "page.md"
    write_between(page, "first", MARKERS, "Title")
    text = page.read_text().replace("## Ablations", "By hand.\n\n## Ablations") + "\nAfterwards.\n"
    page.write_text(text)
    write_between(page, "second", MARKERS, "Title")
    assert page.read_text() == text.replace("first", "second")
    page.write_text("Without a place.\n")
    write_between(page, "third", MARKERS, "Title")
    assert page.read_text().startswith("Without a place.\n")
    page.write_text(page.read_text().replace(MARKERS[1], ""))
    with pytest.raises(ConfigError, match="one of the two markers"):
        write_between(page, "fourth", MARKERS, "Title")


def test_a_cell_of_another_question_is_refused(tmp_path, capsys):
    path = tmp_path / cell_name(BASE_ROW) / "seed0.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"seed": 0, "asked": {"data": "digits", "shots": 30}}))
    assert main(["--only", "text_output", "--seeds", "1", "--out", str(tmp_path), "--docs", ""]) == 2
    assert "data digits there, fashion_mnist now" in capsys.readouterr().err
