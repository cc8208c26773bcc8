"""Loading: what fits loads bit for bit, what does not is refused naming file, key, expected and found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPVisionModelWithProjection, T5EncoderModel

from engine.errors import ModelLoadError
from engine.model.autoencoder import build_autoencoder
from engine.weights import keymaps
from engine.weights.checkpoint import Checkpoint, open_file
from engine.weights.folder import FoundPart
from engine.weights.load import check_model_folder, load_image_encoder, load_module, load_networks
from engine.weights.untrained import write_untrained
from tests.oracles.diffusers_flux import diffusers_flux
from tests.tiny import tiny_profile

PROFILE = tiny_profile()
FILES = PROFILE.files


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_untrained(PROFILE, str(folder), dtype="float32")
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A model folder of its own for every test: links to the files, so that a test can replace one."""
    for path in written.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def rewrite(folder: Path, name: str, change: dict[str, Tensor | None]) -> None:
    """Replace, add or (None) remove tensors of one file."""
    tensors: dict[str, Tensor | None] = {**load_file(str(folder / name)), **change}
    (folder / name).unlink()
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, str(folder / name))


def load_all(folder: Path) -> None:
    load_networks(PROFILE, str(folder), device="cpu", dtype="float32")


def test_untrained_files_are_reproducible_and_seeded(written: Path, tmp_path: Path) -> None:
    write_untrained(PROFILE, str(tmp_path / "again"), dtype="float32")
    write_untrained(PROFILE, str(tmp_path / "other"), seed=1, dtype="float32")
    for path in written.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "other" / path.name).read_bytes() != path.read_bytes()


def test_every_file_loads_bit_for_bit(folder: Path) -> None:
    stages: list[str] = []
    networks = load_networks(
        PROFILE, str(folder), device="cpu", dtype="float32", on_stage=lambda name, seconds: stages.append(name)
    )
    assert sorted(stages) == sorted(dataclasses.asdict(FILES))
    for name, state in (
        (FILES.transformer, networks.flux.state_dict()),
        (FILES.adapter, networks.adapter.state_dict()),
    ):
        stored = load_file(str(folder / name))
        assert state.keys() == stored.keys()
        assert all(torch.equal(state[key], stored[key]) for key in stored)
    assert not any(tensor.is_meta for tensor in networks.text.clip.state_dict().values())
    shared = networks.text.t5.shared.weight
    assert networks.text.t5.encoder.embed_tokens.weight.data_ptr() == shared.data_ptr(), "stored once, held once"


def test_dtype_is_converted_on_the_way_in(folder: Path) -> None:
    networks = load_networks(PROFILE, str(folder), device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in networks.flux.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in networks.decoder.autoencoder.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_files_of_lower_precision_load(folder: Path, dtype: torch.dtype) -> None:
    stored = load_file(str(folder / FILES.transformer))
    rewrite(folder, FILES.transformer, {key: tensor.to(dtype) for key, tensor in stored.items()})
    networks = load_networks(PROFILE, str(folder), device="cpu", dtype="float32")
    key = "double_blocks.0.img_attn.qkv.weight"
    assert torch.equal(networks.flux.state_dict()[key], stored[key].to(dtype).float())


def test_a_prefixed_transformer_loads(folder: Path) -> None:
    stored = load_file(str(folder / FILES.transformer))
    moved: dict[str, Tensor | None] = {f"model.diffusion_model.{key}": tensor for key, tensor in stored.items()}
    rewrite(folder, FILES.transformer, {**moved, **dict.fromkeys(stored)})
    networks = load_networks(PROFILE, str(folder), device="cpu", dtype="float32")
    assert torch.equal(networks.flux.img_in.weight, stored["img_in.weight"])


def test_the_number_of_adapter_tokens_is_read_from_the_file(folder: Path) -> None:
    networks = load_networks(PROFILE, str(folder), device="cpu", dtype="float32")
    assert networks.adapter.encode(torch.zeros(1, 20)).keys.shape[2] == 16
    stored = load_file(str(folder / FILES.adapter))
    four = 4 * PROFILE.transformer.context_in_dim
    keys = [f"ip_adapter_proj_model.proj.{leaf}" for leaf in ("weight", "bias")]
    rewrite(folder, FILES.adapter, {key: stored[key][:four].clone() for key in keys})
    networks = load_networks(PROFILE, str(folder), device="cpu", dtype="float32")
    assert networks.adapter.encode(torch.zeros(1, 20)).keys.shape[2] == 4


BAD_FILES: dict[str, tuple[str, dict[str, Tensor | None], str]] = {
    "missing key": (FILES.transformer, {"img_in.weight": None}, "key img_in.weight is missing"),
    "unexpected key": (FILES.transformer, {"lora.weight": torch.ones(1)}, "key lora.weight does not belong"),
    "wrong shape": (
        FILES.t5,
        {"shared.weight": torch.ones(7, 24)},
        "key shared.weight has shape [7, 24], expected [32128, 24]",
    ),
    "another adapter": (
        FILES.adapter,
        {"ip_adapter_proj_model.proj.weight": torch.ones(25, 20)},
        "has 25 rows, expected a multiple of 24",
    ),
    "adapter for another vision tower": (
        FILES.adapter,
        {"ip_adapter_proj_model.proj.weight": torch.ones(96, 1024)},
        "has shape [96, 1024], expected [96, 20]",
    ),
    "no projection": (FILES.clip_vision, {"visual_projection.weight": None}, "key visual_projection.weight is missing"),
    "fewer decoder levels": (
        FILES.autoencoder,
        {"decoder.up.3.block.0.conv1.weight": None},
        "key decoder.up.3.block.0.conv1.weight is missing",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_does_not_fit_is_refused(folder: Path, case: str) -> None:
    name, change, words = BAD_FILES[case]
    rewrite(folder, name, change)
    with pytest.raises(ModelLoadError) as caught:
        load_all(folder)
    assert str(caught.value).startswith(name)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", sorted(dataclasses.asdict(FILES).values()))
def test_damaged_and_absent_files_are_refused_by_name(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).unlink()
    with pytest.raises(ModelLoadError, match=f"{name} is missing"):
        load_all(folder)
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"\xff" * 64, b"not a safetensors file at all"):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ModelLoadError, match=f"{name} is not a complete safetensors file"):
            load_all(folder)


def test_an_absent_folder_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        load_all(Path("nowhere"))


def test_checks_come_before_any_tensor_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(folder, FILES.transformer, {"img_in.weight": torch.ones(1, 1)})
    monkeypatch.setattr(Checkpoint, "read", lambda *_, **__: pytest.fail("a tensor was read"))
    for check in (load_all, lambda folder: check_model_folder(PROFILE, str(folder))):
        with pytest.raises(ModelLoadError, match=r"img_in\.weight has shape \[1, 1\], expected \[48, 64\]"):
            check(folder)


# -- diffusers folders, written by diffusers and transformers themselves -------------------------------------------


@pytest.fixture
def diffusers_folder(written: Path, tmp_path: Path) -> Path:
    """The same weights as ``written``, as ``save_pretrained`` lays them out, in small shards."""
    networks = load_networks(PROFILE, str(written), device="cpu", dtype="float32")
    folder = tmp_path / "diffusers"
    diffusers_flux(networks.flux).save_pretrained(folder / "transformer", max_shard_size="300KB")
    networks.text.t5.save_pretrained(folder / "text_encoder_2", max_shard_size="2MB")
    networks.text.clip.save_pretrained(folder / "text_encoder")
    networks.vision.network.save_pretrained(folder / "image_encoder")
    autoencoder = build_autoencoder(PROFILE.autoencoder)
    autoencoder.load_state_dict(networks.decoder.autoencoder.state_dict(), strict=False)
    autoencoder.save_pretrained(folder / "vae")
    (folder / FILES.adapter).symlink_to(written / FILES.adapter)
    return folder


def test_a_diffusers_folder_loads_bit_for_bit_like_the_single_files(written: Path, diffusers_folder: Path) -> None:
    assert len(list((diffusers_folder / "transformer").glob("*.safetensors"))) > 2, "shards are what this is about"
    ours = load_networks(PROFILE, str(written), device="cpu", dtype="float32")
    theirs = load_networks(PROFILE, str(diffusers_folder), device="cpu", dtype="float32")
    for name, one, other in (
        ("flux", ours.flux, theirs.flux),
        ("t5", ours.text.t5, theirs.text.t5),
        ("clip", ours.text.clip, theirs.text.clip),
        ("vision", ours.vision.network, theirs.vision.network),
        ("decoder", ours.decoder.autoencoder, theirs.decoder.autoencoder),
    ):
        one_state, other_state = one.state_dict(), other.state_dict()
        assert one_state.keys() == other_state.keys()
        for key, tensor in one_state.items():
            assert torch.equal(tensor, other_state[key]), f"{name}: {key}"


def test_damaged_shards_are_refused_by_name(diffusers_folder: Path) -> None:
    shards = sorted((diffusers_folder / "transformer").glob("*.safetensors"))
    index = next((diffusers_folder / "transformer").glob("*.index.json"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelLoadError, match=f"{shards[1].name} is not a complete safetensors file"):
        load_all(diffusers_folder)
    shards[1].unlink()
    with pytest.raises(ModelLoadError, match=f"{shards[1].name} is missing"):
        load_all(diffusers_folder)
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(ModelLoadError, match=rf"{shards[1].name}: key .* is missing, though transformer/{index.name}"):
        load_all(diffusers_folder)
    for nonsense in ("", "[]", '{"weight_map": 1}', '{"weight_map": {"a": 3}}'):
        index.write_text(nonsense)
        with pytest.raises(ModelLoadError, match="is not an index of safetensors shards"):
            load_all(diffusers_folder)
    index.write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(ModelLoadError, match="names a shard outside its folder"):
        load_all(diffusers_folder)


def test_a_folder_with_neither_file_nor_component_says_what_was_looked_for(diffusers_folder: Path) -> None:
    (diffusers_folder / "vae").rename(diffusers_folder / "vae-moved")
    with pytest.raises(ModelLoadError, match=rf"{FILES.autoencoder} is missing .* no diffusers folder vae/"):
        load_all(diffusers_folder)


# -- networks we did not write, through our loader, against the same tensors through their own ---------------------


def test_autoencoder_keys_are_mapped_as_diffusers_maps_them(written: Path) -> None:
    stored = load_file(str(written / FILES.autoencoder))
    with torch.device("meta"):
        module = build_autoencoder(PROFILE.autoencoder)
    key_map = keymaps.autoencoder(PROFILE.autoencoder, is_encoder_used=True)
    with open_file(written / FILES.autoencoder) as file:
        found = FoundPart(checkpoint=file, key_map=key_map)
        ours = load_module(module, found, device="cpu", dtype=torch.float32).state_dict()
    theirs = convert_ldm_vae_checkpoint(dict(stored), dict(module.config))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor.reshape(ours[key].shape)), key


@torch.inference_mode()
def test_decoder_equals_diffusers_autoencoder(written: Path) -> None:
    stored = load_file(str(written / FILES.autoencoder))
    oracle = build_autoencoder(PROFILE.autoencoder)
    converted = convert_ldm_vae_checkpoint(stored, dict(oracle.config))
    oracle.load_state_dict({key: converted[key].reshape(value.shape) for key, value in oracle.state_dict().items()})
    latents = torch.randn(1, 16, 4, 6)
    theirs = oracle.decode(latents / oracle.config.scaling_factor + oracle.config.shift_factor).sample
    levels = ((theirs.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    networks = load_networks(PROFILE, str(written), device="cpu", dtype="float32")
    ours = networks.decoder.decode(latents)
    assert ours.shape == (1, 32, 48, 3)
    assert (ours == levels).all()
    assert levels.std() > 10


@torch.inference_mode()
def test_text_encoders_equal_transformers_loading_its_own_layout(written: Path, tmp_path: Path) -> None:
    networks = load_networks(PROFILE, str(written), device="cpu", dtype="float32")
    prompt = "A woman, smiling! café"
    ours = networks.text.encode([prompt])[0]
    t5 = transformers_model(T5EncoderModel, networks.text.t5.config, written / FILES.t5, tmp_path / "t5")
    ids = torch.tensor([networks.text._t5_tokenizer.encode(prompt).ids])
    padded = torch.nn.functional.pad(ids, (0, PROFILE.t5.max_tokens - ids.shape[1]))
    assert torch.equal(ours.txt, t5(input_ids=padded).last_hidden_state)
    clip = transformers_model(CLIPTextModel, networks.text.clip.config, written / FILES.clip, tmp_path / "clip")
    ids = torch.tensor([networks.text._clip_tokenizer.encode(prompt).ids])
    padded = torch.nn.functional.pad(ids, (0, PROFILE.clip.max_tokens - ids.shape[1]), value=49_407)
    assert torch.equal(ours.vec, clip(input_ids=padded).pooler_output)
    assert ours.vec.std() > 0.1


@torch.inference_mode()
def test_vision_tower_equals_transformers_and_loads_from_a_whole_clip_file(folder: Path, tmp_path: Path) -> None:
    encoder = load_image_encoder(PROFILE, str(folder))
    crops = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    ours = torch.from_numpy(encoder.encode(crops.numpy()))
    oracle = transformers_model(
        CLIPVisionModelWithProjection, encoder.network.config, folder / FILES.clip_vision, tmp_path / "vision"
    )
    # CLIP's published normalisation, written out once more.
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((crops / 255 - mean) / std).permute(0, 3, 1, 2)
    assert torch.allclose(ours, oracle(pixel_values=pixels).image_embeds, atol=1e-5)
    whole = CLIPModel(
        CLIPModel.config_class(
            text_config=load_networks(PROFILE, str(folder), device="cpu", dtype="float32").text.clip.config.to_dict(),
            vision_config=encoder.network.config.to_dict(),
            projection_dim=PROFILE.clip_vision.projection_dim,
        )
    )
    (folder / FILES.clip_vision).unlink()
    save_file({key: tensor.contiguous() for key, tensor in whole.state_dict().items()}, str(folder / FILES.clip_vision))
    again = load_image_encoder(PROFILE, str(folder))
    assert torch.equal(again.network.visual_projection.weight, whole.visual_projection.weight)


def transformers_model(cls: Any, config: Any, file: Path, folder: Path) -> Any:
    """A transformers model that reads the file by its own means."""
    folder.mkdir()
    config.save_pretrained(folder)
    (folder / "model.safetensors").symlink_to(file.resolve())
    return cls.from_pretrained(folder).eval()
