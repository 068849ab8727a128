"""Settings: presets, overrides, what is written to a run and read back, what is refused."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pytest

from gsavatar.config import (
    PRESETS,
    RANGES,
    Settings,
    load_preset,
    load_settings,
    save_settings,
    to_toml,
)
from gsavatar.errors import InputError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_survives_a_run_folder(name: str, tmp_path: Path) -> None:
    settings = load_preset(name)
    assert settings.preset == name
    save_settings(tmp_path / "config.toml", settings)
    assert load_settings(tmp_path / "config.toml") == settings
    assert [p.name for p in tmp_path.iterdir()] == ["config.toml"]


def test_presets_grow_from_preview_to_quality() -> None:
    preview, standard, quality = (load_preset(n).train for n in ("preview", "standard", "quality"))
    assert preview.steps >= 3000
    for less, more in ((preview, standard), (standard, quality)):
        assert less.size < more.size
        assert less.steps < more.steps
        assert less.gaussians_max < more.gaussians_max


def test_fewshot_trusts_the_shapes_more() -> None:
    preview, fewshot = load_preset("preview").train, load_preset("fewshot").train
    assert fewshot.basis_pull > preview.basis_pull
    assert fewshot.weights == preview.weights


def test_overrides_replace_single_values() -> None:
    settings = load_preset("preview", {"train.steps": 30, "train.weights.color": 1})
    assert settings.train.steps == 30
    assert settings.train.weights.color == 1.0
    before, after = asdict(load_preset("preview").train), asdict(settings.train)
    assert {k for k in before if before[k] != after[k]} == {"steps", "weights"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.stepz": 3}, "stepz"),
        ({"nothing.at.all": 3}, "nothing"),
        ({"train.steps": 0}, "must be from 1 to"),
        ({"train.steps": "many"}, "must be of type int"),
        ({"train.steps": True}, "must be of type int"),
        ({"train.steps": 2.5}, "must be of type int"),
        ({"train.weights.color": -1.0}, "must be from 0 to"),
        ({"train.weights.color": float("nan")}, "must be from"),
        ({"clip.provider": "flume"}, "must be one of auto, ict, clip"),
        ({"train.model": "mesh"}, "must be one of linear, field"),
        ({"train": 3}, "must be a table"),
        ({"train.basis_blend": 7.0}, "must be from 0 to 0.05"),
        ({"train.basis_pull": float("nan")}, "must be from 0 to 0.05"),
        ({"train.refine_poses": True, "train.model": "field"}, "has no such corrections; leave"),
        ({"train.weights.color": 0.5, "train.model": "field"}, "as its paper does; leave"),
        ({"train.weights": {"color": 0.5}, "train.model": "field"}, "as its paper does; leave"),
    ],
)
def test_bad_overrides_are_refused(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_preset("preview", overrides)


def test_other_presets_are_refused() -> None:
    with pytest.raises(InputError, match="no such") as caught:
        load_preset("prewiew")
    assert "preview" in str(caught.value)


def test_the_baseline_is_a_field_of_the_default_size() -> None:
    baseline, preview = load_preset("talkinggaussian").train, load_preset("preview").train
    assert (baseline.model, preview.model) == ("field", "linear")
    assert baseline.gaussians_max == preview.gaussians_max and baseline.size == preview.size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = 3\n", "unknown setting 'steps'"),
        ("[train]\nsteps = \n", "not valid TOML"),
        ("[train.weights]\ncolour = 0.5\n", "unknown setting 'train.weights.colour'"),
        ("[train]\nweights = 3\n", "must be a table"),
    ],
)
def test_a_damaged_file_is_refused_by_name(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_settings(tmp_path / "config.toml")


def test_every_range_names_a_setting() -> None:
    table = asdict(Settings())
    for dotted in RANGES:
        part, name = dotted.split(".")
        assert name in table[part], dotted


def test_toml_text_quotes_what_needs_it() -> None:
    assert to_toml({"a": 'say "so" \\ here', "b": {"c": 1e-05}}) == (
        'a = "say \\"so\\" \\\\ here"\n\n[b]\nc = 1e-05\n'
    )
    assert {f.name for f in fields(Settings)} == {"preset", "clip", "train"}
