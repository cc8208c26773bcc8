"""Training of the embedded model in miniature: each stage runs, learns, stops, goes on, and hands over what it made."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from embedded.train import autoencoder as autoencoding
from embedded.train import distill as distillation
from embedded.train import export, flow
from embedded.train.autoencoder import AutoencoderSettings, encoded, factors, train_autoencoder
from embedded.train.batches import Batches, Drops, contrast, shape_scores, trait_scores
from embedded.train.captions import token_ids
from embedded.train.corpus import Corpus, face_shares, load_corpus
from embedded.train.distill import DistillSettings, distill, guided_velocity
from embedded.train.flow import FlowSettings, train_flow
from embedded.train.likeness import SIDE, Likeness, LikenessSettings, cut_out
from embedded.train.muon import Muon, Optimizer, orthogonalised
from embedded.train.networks import Average, Conditions, Learner, to_latents, to_tokens
from embedded.train.references import MARGIN, _squares, reference_crops
from embedded.train.sample import conditions_for, draw, measured_on
from embedded.train.step import TrainingStep, take_steps
from embedded.train.world import Clock, World
from engine.config import EngineConfig
from engine.engine import load_engine
from engine.face.crop import square_crop
from engine.face.detect import FaceBox
from engine.model.clip_vision import CLIP_MEAN, CLIP_STD
from engine.profile import ModelProfile, load_profile
from engine.request import Finished, ImageRequest, Reference
from engine.sampling import latents as latent_tokens
from engine.weights.load import load_networks
from tests.miniature_training import WORLD, miniature, write_people

pytestmark = pytest.mark.slow

WITHOUT_LIKENESS = LikenessSettings(weight=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A whole miniature run."""

    profile: ModelProfile
    folder: Path
    autoencoder: Any
    learner: Learner
    batches: Batches
    before: dict[str, float]
    after: dict[str, float]
    autoencoder_losses: tuple[float, float]
    measured: dict[str, Any]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Several threads wait for each other at every small convolution, and for long where other work runs beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Trained:
    folder = tmp_path_factory.mktemp("training")
    write_people(folder / "data")
    profile = miniature()
    settings = AutoencoderSettings(batch=2, warm_up_steps=2, learning_rate=3e-3)
    losses = [
        train_autoencoder(WORLD, profile, folder / "data", settings, seconds=1, seed=0, max_steps=steps)
        for steps in (1, 30)
    ]
    autoencoder = losses[1][0]
    corpus = load_corpus(folder / "data", "train", profile, WORLD.device, seed=1)
    latents = encoded(autoencoder, corpus.images, WORLD).float()
    scale, shift = factors(latents)
    profile = export.with_factors(profile, scale, shift)
    latents = (latents - shift) * scale
    before = measured_on(WORLD, Learner(profile), Batches(corpus, latents, profile, WORLD, seed=9))
    learner, measured = train_flow(
        WORLD,
        profile,
        Batches(corpus, latents, profile, WORLD, seed=2),
        FlowSettings(
            batch=8,
            looking_batch=6,
            warm_up_steps=5,
            average_decay=0.9,
            learning_rate=4e-3,
            likeness=WITHOUT_LIKENESS,
        ),
        seconds=1,
        seed=0,
        checkpoint=folder / "flow.pt",
        max_steps=40,
    )
    export.write_model(learner, autoencoder, profile, folder / "model", provenance={"script": "test"})
    batches = Batches(corpus, latents, profile, WORLD, seed=9)
    return Trained(
        profile=profile,
        folder=folder,
        autoencoder=autoencoder,
        learner=learner,
        batches=batches,
        before=before,
        after=measured_on(WORLD, learner, batches),
        autoencoder_losses=(losses[0][1]["reconstruction"], losses[1][1]["reconstruction"]),
        measured=measured,
    )


def corpus_of(trained: Trained) -> Corpus:
    return trained.batches.corpus


def test_every_stage_learns(trained: Trained) -> None:
    first, last = trained.autoencoder_losses
    assert last < 0.8 * first
    assert trained.before["flow_loss"] > 1.8  # nothing is known at first: the velocity's own variance is 2
    assert trained.after["flow_loss"] < 0.75 * trained.before["flow_loss"]
    assert trained.measured["steps"] == 40


def test_the_tower_is_tried_on_people_who_were_kept_from_it(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, met = corpus_of(trained), set[int]()
    crops = Batches.crops

    def noted(batches: Batches, rows: torch.Tensor) -> torch.Tensor:
        met.update((rows // corpus.num_views).tolist())
        return crops(batches, rows)

    monkeypatch.setattr(Batches, "crops", noted)
    looking = flow._learn_to_look(
        WORLD, trained.learner.copied(), trained.batches, FlowSettings(looking_batch=64), seconds=1, max_steps=2
    )
    assert met == set(range(corpus.num_identities - 1))
    assert looking["trait_loss_of_known"] > 0
    assert looking["trait_loss_of_strangers"] > 0


def test_latents_are_normalised(trained: Trained) -> None:
    latents = trained.batches.latents
    assert abs(float(latents.mean())) < 0.05
    assert abs(float(latents.std()) - 1) < 0.05


def test_the_engine_loads_the_export_and_says_what_the_learner_says(trained: Trained) -> None:
    networks = load_networks(trained.profile, str(trained.folder / "model"), device="cpu", dtype="float32")
    learner, _ = export.read_model(trained.profile, trained.folder / "model")
    prompt, crop = "a face, number 1", np.full((224, 224, 3), 90, np.uint8)
    text, embedding = networks.text.encode([prompt])[0], networks.vision.encode(crop[None])
    ids = token_ids([prompt], trained.profile)
    with torch.no_grad():
        txt, vec = learner.read(ids)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        pixels = (torch.from_numpy(crop).permute(2, 0, 1)[None] / 255 - mean) / std
        torch.testing.assert_close(txt, text.txt)
        torch.testing.assert_close(vec, text.vec)
        torch.testing.assert_close(learner.look(pixels), torch.from_numpy(embedding))


def test_a_picture_comes_out_of_the_engine_and_is_the_samplers(trained: Trained) -> None:
    config = EngineConfig(profile=trained.profile, model_dir=str(trained.folder / "model"))
    engine = load_engine(config)
    crop = np.full((224, 224, 3), 90, np.uint8)
    engine.submit(
        ImageRequest(
            request_id="a",
            prompt="a portrait",
            reference=Reference(crop=crop, key="gray"),
            width_px=256,
            height_px=256,
            num_steps=2,
            seed=3,
        )
    )
    events = [event for _ in range(2) for event in engine.step()]
    finished = next(event for event in events if isinstance(event, Finished))
    learner, _ = export.read_model(trained.profile, trained.folder / "model")
    pixels = torch.from_numpy(crop).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    given = conditions_for(WORLD, learner, ["a portrait"], (pixels - mean) / std, scale=0.8, guidance=3.5)
    latents = draw(WORLD, learner.velocity, given, seeds=[3], num_channels=16, num_steps=2)
    networks = load_networks(trained.profile, str(trained.folder / "model"), device="cpu", dtype="float32")
    expected = networks.decoder.decode(latents)[0]
    assert np.abs(finished.image.astype(int) - expected).max() <= 1


def test_a_stopped_run_goes_on(trained: Trained) -> None:
    messages: list[str] = []
    world = _Told(rank=0, size=1, device=torch.device("cpu"), messages=messages)
    _, measured = train_flow(
        world,
        trained.profile,
        trained.batches,
        FlowSettings(batch=4, average_decay=0.9, likeness=WITHOUT_LIKENESS),
        seconds=1,
        seed=0,
        checkpoint=trained.folder / "flow.pt",
        max_steps=42,
    )
    assert messages[0].startswith("goes on from step 40")
    assert measured["steps"] == 42
    assert measured["examples"] == trained.measured["examples"] + 2 * 4
    assert measured["looking"] == trained.measured["looking"]  # that was the first run's


def test_likeness_may_come_in_later_and_its_reader_is_kept(trained: Trained, tmp_path: Path) -> None:
    checkpoint = tmp_path / "flow.pt"
    shutil.copy(trained.folder / "flow.pt", checkpoint)
    readers = []
    for max_steps in (44, 46):
        _, measured = train_flow(
            WORLD,
            trained.profile,
            trained.batches,
            FlowSettings(batch=4, average_decay=0.9, likeness=LikenessSettings(weight=0.5, reader_batch=4)),
            seconds=1,
            seed=0,
            checkpoint=checkpoint,
            max_steps=max_steps,
        )
        readers.append(measured["reader"])
    assert readers[0] is not None
    assert readers[0] == readers[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Told(World):
    messages: list[str]

    def say(self, message: str) -> None:
        self.messages.append(message)


def test_guidance_one_at_full_strength_is_the_teacher_and_strength_zero_is_nobody(trained: Trained) -> None:
    teacher, batches = trained.learner, trained.batches
    batch = batches.batch(4, Drops(), sigma=torch.full((4,), 0.6))
    with torch.no_grad():
        txt, vec = teacher.read(batch.tokens)
        blank_txt, blank_vec = teacher.read(batches.empty)
        one = torch.ones(4)
        given = Conditions(txt=txt, vec=vec, embeddings=batch.embeddings, scale=one, guidance=one)
        blank = dataclasses.replace(given, txt=blank_txt.expand_as(txt), vec=blank_vec.expand_as(vec))
        settings = DistillSettings()
        plain = teacher.velocity(batch.noisy, batch.sigma, given)
        torch.testing.assert_close(
            guided_velocity(teacher, batch.noisy, batch.sigma, given, blank, settings), plain, atol=1e-5, rtol=1e-5
        )
        nobody = dataclasses.replace(given, scale=0 * one, guidance=3.5 * one)
        another = dataclasses.replace(nobody, embeddings=nobody.embeddings.flip(0))
        torch.testing.assert_close(
            guided_velocity(teacher, batch.noisy, batch.sigma, nobody, blank, settings),
            guided_velocity(teacher, batch.noisy, batch.sigma, another, blank, settings),
        )


def test_distillation_moves_the_transformer_and_nothing_else(trained: Trained) -> None:
    settings = DistillSettings(batch=4, warm_up_steps=1)
    student, measured = distill(WORLD, trained.learner, trained.batches, settings, seconds=1, max_steps=2)
    before, after = trained.learner.state_dict(), student.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"flux", "adapter"}
    assert measured["steps"] == 2


def test_parts_are_cut_and_joined_and_damage_is_seen(trained: Trained, tmp_path: Path) -> None:
    parts = export.cut(trained.folder / "model", tmp_path / "parts", part_bytes=1_000_000)
    assert len(parts) > 2
    assert all(part.stat().st_size <= 1_000_000 for part in parts)
    export.join(tmp_path / "parts", tmp_path / "model")
    for path in (trained.folder / "model").iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()
    body = bytearray(parts[1].read_bytes())
    body[500_000] ^= 1
    parts[1].write_bytes(body)
    with pytest.raises(ValueError, match="is damaged"):
        export.join(tmp_path / "parts", tmp_path / "model")


def test_installing_writes_the_factors_into_the_profile(trained: Trained, tmp_path: Path) -> None:
    packaged = Path(export.__file__).parents[2] / "engine" / "profiles" / "embedded.toml"
    profile_file = tmp_path / "embedded.toml"
    profile_file.write_text(packaged.read_text())
    export.install(trained.folder / "model", tmp_path / "weights", profile_file)
    installed = load_profile(str(profile_file))
    assert installed.autoencoder.scale_factor == pytest.approx(trained.profile.autoencoder.scale_factor, rel=1e-4)
    assert installed.autoencoder.shift_factor == pytest.approx(trained.profile.autoencoder.shift_factor, rel=1e-4)
    assert (tmp_path / "weights" / "flux.safetensors").is_file()


def test_references_are_cropped_as_the_face_stage_crops(trained: Trained) -> None:
    image = corpus_of(trained).images[0].numpy()
    box = FaceBox(left_px=78, top_px=62, width_px=100, height_px=130, confidence=0.9)
    expected = square_crop(image, box, margin=MARGIN, size_px=224).astype(float) / 255
    face = torch.tensor([[128.0, 127.0, 130.0]])
    crop = reference_crops(torch.from_numpy(image)[None], face, None)[0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    pixels = (crop * std + mean).permute(1, 2, 0).numpy()
    assert np.abs(pixels - expected).mean() < 2 / 255


def test_a_slant_is_a_turn_and_changes_no_face() -> None:
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    centre, side = torch.tensor([[30.0, 34.0]]).expand(3, -1), torch.full((3,), 40.0)
    quarter = torch.pi / 2
    flip, tilt = torch.tensor([1.0, 1.0, -1.0]), torch.tensor([0.0, quarter, quarter])
    plain, turned, mirrored = _squares(pixels, centre, side, flip, tilt, 40)
    assert torch.allclose(turned, plain.rot90(1, (1, 2)), atol=1e-4)
    assert torch.allclose(mirrored, turned.flip(2), atol=1e-4)


def test_the_other_view_is_the_same_persons_and_another(trained: Trained) -> None:
    corpus = corpus_of(trained)
    rows = torch.arange(len(corpus)).repeat(20)
    others = corpus.another_view(rows, torch.Generator().manual_seed(0))
    assert bool((others != rows).all())
    people = [record["identity"] for record in corpus.records]
    assert all(people[a] == people[b] for a, b in zip(rows.tolist(), others.tolist(), strict=True))


def test_tokens_are_packed_as_the_engine_packs_them() -> None:
    latents = torch.randn(3, 16, 8, 12)
    expected = torch.stack([latent_tokens.pack(sample) for sample in latents])
    assert torch.equal(to_tokens(latents), expected)


def test_latents_come_back_from_tokens() -> None:
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(to_latents(to_tokens(latents)), latents)


def test_updates_are_orthogonal_block_by_block() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, 24, 24)))
    assert float(values.median()) == pytest.approx(1, abs=0.3)
    assert float(values.max()) < 1.3
    wide, tall = torch.zeros(8, 24, requires_grad=True), torch.zeros(16, 8, requires_grad=True)
    optimizer = Muon([wide, tall])
    optimizer.learning_rate.fill_(1.0)
    wide.grad, tall.grad = torch.randn(8, 24), torch.randn(16, 8)
    optimizer.step()
    assert float((wide.detach() * wide.grad).sum()) < 0  # downhill
    assert float((tall.detach() * tall.grad).sum()) < 0
    assert float(wide.detach().pow(2).mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_a_face_covers_its_share_of_every_token() -> None:
    faces = torch.tensor([[128.0, 128.0, 256.0], [32.0, 48.0, 16.0], [8.0, 8.0, 32.0]])
    everywhere, four, corner = face_shares(faces, 16, 256).unflatten(1, (16, 16))
    assert bool((everywhere == 1).all())
    assert float(four.sum()) == 1  # 16 pixels a side are one token's area, here over four of them
    assert bool((four[2:4, 1:3] == 0.25).all())
    assert float(corner.sum()) == 1.5**2  # what lies outside the picture is not counted


def test_faces_count_more(trained: Trained) -> None:
    batch = trained.batches.batch(4, Drops(), sigma=torch.full((4,), 0.6))
    wrong = batch.velocity.clone()
    wrong[batch.is_face == 0] += 1.0
    plain, _ = batch.losses(wrong, batch.velocity, face_weight=1.0)
    lenient, (everywhere, on_faces) = batch.losses(wrong, batch.velocity, face_weight=5.0)
    assert float(on_faces) == 0
    assert float(plain) == pytest.approx(float(everywhere)) == pytest.approx(float((batch.is_face == 0).float().mean()))
    assert 0 < float(lenient) < float(plain)


def test_references_are_of_the_same_person(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_of(trained)
    batches = Batches(corpus, trained.batches.latents, trained.profile, WORLD, seed=3)
    with pytest.raises(RuntimeError, match="look"):
        batches.batch(4, Drops(), sigma=torch.full((4,), 0.5))
    monkeypatch.setattr(batches, "crops", lambda rows: rows)
    batches.look(lambda rows: rows[:, None].float(), batch=5)  # 18 pictures: the last batch overlaps the one before
    batch = batches.batch(256, Drops(), sigma=torch.full((256,), 0.5))
    seen = batch.embeddings[:, 0].long()
    assert torch.equal(seen // corpus.num_views, batch.rows // corpus.num_views)
    assert not bool((seen == batch.rows).any())
    assert set(seen.tolist()) == set(range(len(corpus)))


def test_shape_scores_keep_what_differs_most() -> None:
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(50, 1, generator=generator)
    narrow = torch.randn(50, 1, generator=generator)
    shapes = torch.cat([4 * wide, narrow, torch.zeros(50, 4)], dim=1) + 7
    scores = shape_scores(shapes, count=2)
    assert scores.square().mean() == pytest.approx(1)
    spread = scores.std(0)
    assert float(spread[1] / spread[0]) == pytest.approx(2, rel=0.2)  # a deviation of 4 counts twice one of 1
    assert abs(float(torch.corrcoef(torch.cat([scores[:, 1:], wide], 1).T)[0, 1])) > 0.99


def test_all_traits_count_alike_whatever_their_range() -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = torch.randn(50, 60, generator=rng)
    traits = torch.randn(50, 2, generator=rng) * torch.tensor([10.0, 0.1]) + 40
    scores = trait_scores(shapes, torch.cat([traits, torch.full((50, 1), 0.3)], dim=1))
    assert torch.equal(scores[:, :48], shape_scores(shapes))
    assert torch.allclose(scores[:, 48:50].mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(scores[:, 48:50].square().mean(0), torch.ones(2), atol=1e-3)
    assert scores[:, 50].abs().max() < 0.01  # all alike: nothing to say


def test_contrast_is_least_where_pairs_agree_and_forgives_doubles() -> None:
    one = torch.eye(4)
    people = torch.arange(4)
    assert float(contrast(one, one, people)) < 0.01 < float(contrast(one, one.roll(1, 0), people))
    doubled = torch.cat([one, one])
    assert float(contrast(doubled, doubled, torch.cat([people, people]))) < 0.01


@pytest.fixture(scope="module")
def likeness(trained: Trained) -> Likeness:
    torch.manual_seed(0)
    settings = LikenessSettings(weight=0.5, reader_batch=6, reader_rate=2e-3)
    likeness = Likeness(WORLD, trained.batches, settings)
    likeness.learn(max_steps=60)
    return likeness


def test_the_reader_learns_from_latents_what_traits_a_face_has(trained: Trained, likeness: Likeness) -> None:
    measured = likeness.measured
    assert measured is not None
    # Scores have a mean square of 1, which is what knowing nothing would miss.
    assert measured["reader_traits"] < 0.9
    assert not any(parameter.requires_grad for parameter in likeness.reader.parameters())
    again = Likeness(WORLD, trained.batches, likeness.settings)
    again.load_state_dict(likeness.state_dict())
    faces = torch.randn(2, 16, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.reader(faces)[0], likeness.reader(faces)[0])
    assert again.measured == measured


def test_faces_are_cut_where_they_are() -> None:
    rows = torch.arange(32.0).view(1, 1, 32, 1).expand(1, 1, 32, 32)
    both = torch.cat((rows, rows.mT), dim=1)
    # A box of 20 of 32 pixels is cut with a tenth more on every side: 24 pixels, as many as are read.
    centre = torch.tensor([[14 / 32, 18 / 32, 20 / 32]])
    cut = cut_out(both, centre)
    assert cut[0, 0, :, 0].tolist() == pytest.approx([6 + i for i in range(SIDE)], abs=1e-4)
    assert cut[0, 1, 0].tolist() == pytest.approx([2 + i for i in range(SIDE)], abs=1e-4)


def test_likeness_is_missed_by_nothing_but_another_face(trained: Trained, likeness: Likeness) -> None:
    batch = trained.batches.batch(6, Drops(image=0, both=0), sigma=torch.full((6,), 0.4))
    assert float(likeness.loss(batch.velocity, batch)) == pytest.approx(0, abs=1e-5)
    others = dataclasses.replace(batch, clean=batch.clean.roll(1, 0)).velocity
    assert float(likeness.loss(others, batch)) > 0.01
    nobody = dataclasses.replace(batch, is_nobody=torch.ones(6, dtype=torch.bool))
    assert float(likeness.loss(others, nobody)) == 0
    beside = batch.velocity.clone()
    beside[:, 0] += 5.0  # the upper left corner
    assert float(likeness.loss(beside, batch)) == pytest.approx(0, abs=1e-5)


def test_likeness_has_its_share_of_the_gradient(trained: Trained, likeness: Likeness) -> None:
    batch = trained.batches.batch(6, Drops(image=0, both=0), sigma=torch.full((6,), 0.4))
    leaf = (0.5 * batch.velocity).requires_grad_()
    flow_loss, _ = batch.losses(leaf, batch.velocity, face_weight=5.0)
    (alone,) = torch.autograd.grad(flow_loss, leaf, retain_graph=True)
    both, _ = likeness.gradient_on(leaf, flow_loss, batch)
    added = (both - alone).square().mean().sqrt() / alone.square().mean().sqrt()
    assert float(added) == pytest.approx(0.5, rel=1e-3)
    # Along it the loss falls.
    with torch.no_grad():
        moved = leaf - 0.02 * (both - alone) / (both - alone).square().mean().sqrt()
        trained.batches.generator.manual_seed(5)
        before = likeness.loss(leaf, batch)
        trained.batches.generator.manual_seed(5)
        assert float(likeness.loss(moved, batch)) < float(before)


class NothingReadBack(TorchDispatchMode):
    """Fails where a number on the device decides something on the host, or data are copied there: what can't be part
    of a recorded step."""

    READS = frozenset(
        {
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.masked_select.default,
            torch.ops.aten.equal.default,
            torch.ops.aten.lift_fresh.default,  # torch.tensor(...)
        }
    )

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)  # named, so that mypy sees that it is torch whose function has no types

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in self.READS, func
        return func(*args, **(kwargs or {}))


def test_a_step_can_be_recorded(trained: Trained, likeness: Likeness) -> None:
    learner = Learner(trained.profile)
    black = learner.look_at_black().detach()
    settings, generator = AutoencoderSettings(batch=2), torch.Generator()
    pictures = autoencoding._Pictures(trained.folder / "data", WORLD, settings, seed=0)
    with NothingReadBack():
        autoencoding._losses(trained.autoencoder, pictures, settings, generator)
        flow._losses(WORLD, learner, trained.batches, black, FlowSettings(batch=4), None)
        flow._losses(WORLD, learner, trained.batches, black, FlowSettings(batch=4), likeness)
        distillation._losses(WORLD, trained.learner, learner, trained.batches, black, DistillSettings(batch=4))
    with pytest.raises(AssertionError), NothingReadBack():
        float(torch.ones(()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_stage_whose_loss_is_lost_does_not_go_on(value: float) -> None:
    network = torch.nn.Linear(2, 2)

    def losses() -> tuple[torch.Tensor, torch.Tensor]:
        loss = value * network(torch.ones(1, 2)).sum()
        return loss, loss[None]

    step = TrainingStep(WORLD, losses, Optimizer(network), None, num_shown=1, generators=())
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        take_steps(
            WORLD, Clock(WORLD, 1.0, max_steps=3), step, stage="t", names=("loss",), learning_rate=1e-3, warm_up_steps=1
        )


def test_the_autoencoder_weighs_faces_where_they_are(trained: Trained) -> None:
    settings = AutoencoderSettings(batch=64, face_weight=3.0)
    pictures = autoencoding._Pictures(trained.folder / "data", WORLD, settings, seed=0)
    # Pictures whose pixels say whether they are face.
    squares = face_shares(pictures._faces, 256, 256).view(-1, 256, 256, 1) >= 1
    pictures.images = torch.where(squares, 255, 0).byte().expand(-1, -1, -1, 3)
    pictures.choose()
    is_face = pictures.target[:, :1] > 0
    assert 0.02 < float(is_face.float().mean()) < 0.9
    assert float(pictures.weight.mean()) == pytest.approx(1, abs=1e-5)
    on_face, elsewhere = pictures.weight[is_face], pictures.weight[~is_face]
    assert float(on_face.median() / elsewhere.median()) == pytest.approx(3)
    assert float(on_face.min()) == pytest.approx(float(on_face.max()))
    assert len({tuple(row.flatten().tolist()) for row in pictures.weight[:, 0, ::8, ::8]}) > 1
    right, wrong = pictures.target, pictures.target.clone()
    wrong[:, :, :8, :8] += 0.5  # a corner: no face there
    plain = autoencoding._distance(wrong, right, torch.ones_like(pictures.weight))
    assert 0 < float(autoencoding._distance(wrong, right, pictures.weight)) < float(plain)


def test_an_autoencoder_goes_on_from_another(trained: Trained) -> None:
    settings = AutoencoderSettings(batch=2, learning_rate=1e-6)
    initial = copy.deepcopy(trained.autoencoder)
    data = trained.folder / "data"
    further, measured = train_autoencoder(
        WORLD, trained.profile, data, settings, seconds=1, seed=0, initial=initial, max_steps=1
    )
    assert measured["reconstruction"] < trained.autoencoder_losses[0]
    for old, new in zip(trained.autoencoder.parameters(), further.parameters(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-4, rtol=0)


def test_an_average_follows(trained: Trained) -> None:
    learner = Learner(trained.profile)
    average = Average(learner, learner.copied(), decay=0.5)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(1)
    before = [parameter.clone() for parameter in average.module.parameters()]
    average.update()
    for old, new in zip(before, average.module.parameters(), strict=True):
        # After one step the horizon is short: 2/11 of the old stay, as the decay's ceiling of 0.5 allows.
        torch.testing.assert_close(new - old, torch.full_like(old, 9 / 11))
