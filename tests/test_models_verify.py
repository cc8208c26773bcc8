"""Checking a model folder without loading it: what is missing, cut short, changed, or of another model."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.model.autoencoder import build_autoencoder
from engine.model.clip_vision import build_clip_vision
from engine.model.flux import Flux
from engine.model.text import build_clip_text, build_t5
from engine.profile import load_profile
from engine.weights import catalog
from engine.weights.catalog import APACHE_TERMS, FLUX_DEV, RemoteFile
from engine.weights.checksum import RECEIPTS
from engine.weights.load import build_adapter
from engine.weights.untrained import NUM_ADAPTER_TOKENS, write_untrained
from engine.weights.verify import FileReport, Outcome, verify
from tests.tiny import tiny_profile

PROFILE = tiny_profile()
NAME = PROFILE.files.transformer
MAX_HEADER_BYTES = 200_000
OK, FAILED, UNKNOWN, NOT_ASKED = Outcome.OK, Outcome.FAILED, Outcome.UNKNOWN, Outcome.NOT_ASKED


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_untrained(PROFILE, str(folder))
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "model")


@pytest.fixture
def published(written: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The catalog knows size and checksum of every file that was written, except the adapter's."""
    known = {
        role: RemoteFile(
            repo_id="lab/tiny",
            path=name,
            revision="main",
            size_bytes=None if role == "adapter" else (written / name).stat().st_size,
            sha256=None if role == "adapter" else hashlib.sha256((written / name).read_bytes()).hexdigest(),
            terms=APACHE_TERMS,
        )
        for role, name in dataclasses.asdict(PROFILE.files).items()
    }
    monkeypatch.setitem(catalog.CATALOG, PROFILE.name, known)
    yield


def outcomes(report: FileReport) -> tuple[Outcome, ...]:
    return tuple(check.outcome for check in report.checks.values())


def of(reports: tuple[FileReport, ...], role: str = "transformer") -> FileReport:
    return next(report for report in reports if report.role == role)


@pytest.mark.usefixtures("published")
def test_a_good_folder(folder: Path) -> None:
    reports = verify(PROFILE, folder)
    assert all(report.is_good for report in reports)
    assert {report.name for report in reports} == set(dataclasses.astuple(PROFILE.files))
    for report in reports:
        unknown = report.role == "adapter"
        assert outcomes(report) == (OK, UNKNOWN, UNKNOWN, OK) if unknown else (OK, OK, NOT_ASKED, OK)
        assert report.size_bytes == (folder / report.name).stat().st_size


@pytest.mark.usefixtures("published")
def test_checksums_are_taken_when_asked_for_and_remembered(folder: Path) -> None:
    assert outcomes(of(verify(PROFILE, folder, with_checksums=True))) == (OK, OK, OK, OK)
    assert of(verify(PROFILE, folder)).checksum.detail == "as checked before"
    (folder / NAME).touch()
    assert of(verify(PROFILE, folder)).checksum.outcome is NOT_ASKED


@pytest.mark.usefixtures("published")
def test_one_changed_bit_is_found_by_the_checksum_alone(folder: Path) -> None:
    content = bytearray((folder / NAME).read_bytes())
    content[-1] ^= 1
    (folder / NAME).write_bytes(content)
    assert outcomes(of(verify(PROFILE, folder))) == (OK, OK, NOT_ASKED, OK)
    report = of(verify(PROFILE, folder, with_checksums=True))
    assert outcomes(report) == (OK, OK, FAILED, OK)
    assert hashlib.sha256(content).hexdigest() in report.checksum.detail
    assert not (folder / RECEIPTS).exists() or NAME not in (folder / RECEIPTS).read_text()


@pytest.mark.usefixtures("published")
def test_a_file_cut_short_fails_by_size_and_by_header(folder: Path) -> None:
    content = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(content[:-1])
    report = of(verify(PROFILE, folder, with_checksums=True))
    assert outcomes(report) == (OK, FAILED, FAILED, FAILED)
    assert report.size.detail == f"{len(content) - 1} bytes, the published file has {len(content)}"
    assert "not a complete safetensors file" in report.contents.detail


@pytest.mark.usefixtures("published")
def test_a_missing_file_is_one_failure_and_the_others_are_still_checked(folder: Path) -> None:
    (folder / NAME).unlink()
    reports = verify(PROFILE, folder)
    assert outcomes(of(reports)) == (FAILED, UNKNOWN, UNKNOWN, UNKNOWN)
    assert all(report.is_good for report in reports if report.role != "transformer")


@pytest.mark.parametrize(
    ("role", "key"),
    [
        ("transformer", "img_in.weight"),
        ("adapter", "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"),
        ("t5", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("clip", "text_model.encoder.layers.0.mlp.fc1.weight"),
        ("clip_vision", "visual_projection.weight"),
        ("autoencoder", "decoder.conv_in.weight"),
    ],
)
def test_a_wrong_shape_names_file_key_found_and_expected(folder: Path, role: str, key: str) -> None:
    name = dataclasses.asdict(PROFILE.files)[role]
    tensors = load_file(str(folder / name))
    expected = list(tensors[key].shape)
    tensors[key] = torch.zeros(expected[0] + 1, *expected[1:])
    save_file(tensors, str(folder / name))
    report = of(verify(PROFILE, folder), role)
    assert outcomes(report) == (OK, UNKNOWN, UNKNOWN, FAILED)
    for words in (name, key, str([expected[0] + 1, *expected[1:]]), str(expected)):
        assert words in report.contents.detail


def test_the_folder_of_another_profile_fails(folder: Path) -> None:
    reports = verify(load_profile("flux-dev"), folder)
    assert [report.role for report in reports if report.contents.outcome is OK] == []
    assert not any(report.is_good for report in reports)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    reports = verify(PROFILE, tmp_path / "none")
    assert {report.presence.outcome for report in reports} == {FAILED}


def test_a_diffusers_component_takes_a_files_place(folder: Path) -> None:
    (folder / "text_encoder_2").mkdir()
    (folder / PROFILE.files.t5).rename(folder / "text_encoder_2" / "model.safetensors")
    report = of(verify(PROFILE, folder), "t5")
    assert (report.name, outcomes(report)) == ("text_encoder_2/", (OK, UNKNOWN, UNKNOWN, OK))
    (folder / "text_encoder_2" / "model.safetensors").write_bytes(b"")
    assert of(verify(PROFILE, folder), "t5").contents.outcome is FAILED


def test_the_catalogs_sizes_are_those_of_the_profiles_networks() -> None:
    """Parameters × bytes, and a header: the published files' sizes and our shapes say the same."""
    flux_dev = load_profile("flux-dev")
    with torch.device("meta"):
        networks = {
            "transformer": (Flux(flux_dev.transformer), 2),
            "adapter": (build_adapter(flux_dev, NUM_ADAPTER_TOKENS), 2),
            "t5": (build_t5(flux_dev.t5), 2),
            "clip": (build_clip_text(flux_dev.clip), 2),
            "autoencoder": (build_autoencoder(flux_dev.autoencoder), 4),
        }
    # T5's file holds the token embeddings under two names.
    twice = {"t5": flux_dev.t5.vocab_size * flux_dev.t5.d_model}
    for role, (network, bytes_each) in networks.items():
        num_parameters = sum(parameter.numel() for parameter in network.parameters()) + twice.get(role, 0)
        num_bytes = num_parameters * bytes_each
        size_bytes = FLUX_DEV[role].size_bytes
        assert size_bytes is not None
        assert 0 < size_bytes - num_bytes < MAX_HEADER_BYTES, role
    with torch.device("meta"):
        vision = build_clip_vision(flux_dev.clip_vision)
    # The file holds the whole of CLIP in float32: the vision tower is most of it.
    size_bytes = FLUX_DEV["clip_vision"].size_bytes
    assert size_bytes is not None
    assert 0.7 < sum(parameter.numel() for parameter in vision.parameters()) * 4 / size_bytes < 0.72
