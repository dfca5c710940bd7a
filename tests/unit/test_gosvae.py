"""GOS-VAE: the quantiser, the index coder, packets, losses, and what fills the hole of a lost packet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.errors import BudgetError, InputError
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems import SYSTEMS
from semcast.systems.gosvae.codebook import DEAD, Codebook, k_means
from semcast.systems.gosvae.coding import GROUPS, IndexCoder, IndexCounts, Slice, contexts, groups, slice_rows, unpack
from semcast.systems.gosvae.losses import (
    BETA,
    adversarial,
    check_terms,
    distortion,
    js_divergence,
    kl_divergence,
    quantisation_loss,
)
from semcast.systems.gosvae.networks import PatchDiscriminator, SmallConfig
from semcast.systems.gosvae.system import GosVae, between_rows, scaled_size
from semcast.transmit import run
from semcast.types import Decoded, Format, Step
from semcast.video.scenes import open_scene

TINY = SmallConfig(codewords=64, depth=8, width=16, blocks=1, decoder_width=16, decoder_blocks=1, fine_width=8, fine_blocks=1)


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """(1, 3, 96, 128)."""
    return next(iter(open_scene("astronaut-pan:size=128x96,frames=1").frames()))[None]


@pytest.fixture(scope="module")
def fitted(picture: Tensor) -> GosVae:
    """A tiny system started in closed form on one picture, its index statistics counted on it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        system = GosVae(TINY, "gos-vae", "small", {"mse": 1.0})
    system.initialise(picture)
    with torch.no_grad():
        for _ in range(3):
            system.counts.observe(system.codebook.nearest(system.analyse(picture)), system.codebook.vectors)
    return system.eval()


# -- codebook ----------------------------------------------------------------------------------------------------------------


def test_the_nearest_codeword_is_the_nearest(generator: torch.Generator) -> None:
    book = Codebook(20, 5)
    z = torch.randn(2, 5, 7, 9, generator=generator)
    by_hand = (z.movedim(1, -1)[..., None, :] - book.vectors).square().sum(-1).argmin(-1)
    q = book(z)
    assert torch.equal(q.indices, by_hand)
    assert torch.equal(q.e.movedim(1, -1), book.vectors[by_hand])
    assert torch.allclose(q.z_q, q.e, atol=1e-6)


def test_the_gradient_passes_straight_through(generator: torch.Generator) -> None:
    book = Codebook(20, 5)
    z = torch.randn(1, 5, 4, 4, generator=generator, requires_grad=True)
    weight = torch.randn(1, 5, 4, 4, generator=generator)
    (book(z).z_q * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert book.vectors.grad is None


def test_dead_codewords_come_back_and_are_used(generator: torch.Generator) -> None:
    book = Codebook(16, 3)
    with torch.no_grad():
        book.vectors.zero_()
        book.vectors[0] = torch.tensor([1.0, 1, 1])
        book.vectors[1:] += 100  # out of reach of all
    z = torch.randn(2, 3, 8, 8, generator=generator)
    used_before = len(book.nearest(z).unique())
    revived = 0
    for _ in range(500):
        revived += book.revive(z, book.nearest(z), generator)
    assert used_before == 1
    assert revived >= 15
    assert len(book.nearest(z).unique()) >= 12  # two that were drawn alike share one place
    assert float(book.usage.min()) >= DEAD


def test_a_codebook_of_even_steps_rounds_and_stays(generator: torch.Generator) -> None:
    book = Codebook(256, 1, learned=False)
    assert not list(book.parameters())
    z = 4 * torch.rand(1, 1, 8, 8, generator=generator) - 2
    assert float((book(z).e - z).abs().max()) <= 8 / 255 + 1e-6
    assert book.revive(z, book.nearest(z), generator) == 0


def test_k_means_finds_clusters(generator: torch.Generator) -> None:
    truth = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = truth.repeat(200, 1) + 0.1 * torch.randn(600, 2, generator=generator)
    found = min((k_means(points, 3, torch.Generator().manual_seed(s)) for s in range(5)), key=lambda c: _cost(points, c))
    assert torch.allclose(found[found.sum(1).argsort()].sum(1).sort().values, torch.tensor([0.0, 10, 10]), atol=0.2)


def _cost(points: Tensor, centres: Tensor) -> float:
    return float(torch.cdist(points, centres).min(1).values.square().sum())


# -- index coder -------------------------------------------------------------------------------------------------------------


def wavy_maps(count: int, generator: torch.Generator, size: int = 64) -> Tensor:
    """Maps of neighbours that resemble each other, (count, 32, 40)."""
    noise = torch.randn(count, 1, 36, 44, generator=generator)
    smooth = F.avg_pool2d(noise, 5, 1)[:, 0]
    return (size * torch.sigmoid(3 * smooth)).long().clamp(0, size - 1)


def test_contexts_by_hand() -> None:
    one = np.array([[0, 1, 2], [2, 1, 0]])
    group = np.array([0, 5, 11])
    middle = GROUPS // 2
    by_hand = [[(middle, middle), (0, 0), (5, 5)], [(0, 0), (11, 5), (5, 11)]]
    assert contexts(one, group, 1).tolist() == [[left * GROUPS + up for left, up in row] for row in by_hand]


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("model", ["static", "context"])
def test_round_trip_is_exact_and_within_a_percent_of_the_ideal(planes: int, model: str, generator: torch.Generator) -> None:
    vectors = torch.linspace(-1, 1, 64)[:, None]
    counts = IndexCounts(64, planes)
    for _ in range(20):
        counts.observe(wavy_maps(8, generator), vectors)
    coder = IndexCoder(counts, vectors)
    one = wavy_maps(1, generator)[0].numpy()
    data = coder.encode(one, model)
    assert np.array_equal(coder.decode(data, *one.shape, model), one)
    ideal = coder.ideal_bits(one, model) / 8
    assert ideal <= len(data) + 1
    assert len(data) <= 1.01 * ideal + 4


def test_contexts_save_bytes_where_neighbours_resemble(generator: torch.Generator) -> None:
    vectors = torch.linspace(-1, 1, 64)[:, None]
    counts = IndexCounts(64)
    for _ in range(20):
        counts.observe(wavy_maps(8, generator), vectors)
    coder = IndexCoder(counts, vectors)
    one = wavy_maps(1, generator)[0].numpy()
    static, context = (len(coder.encode(one, model)) for model in ("static", "context"))
    assert context < 0.85 * static
    assert static < one.size * 6 / 8  # six bits would do for 64 codewords without any statistics


def test_what_was_never_seen_can_be_coded() -> None:
    vectors = torch.linspace(-1, 1, 64)[:, None]
    counts = IndexCounts(64)
    for _ in range(500):
        counts.observe(torch.zeros(1, 8, 8, dtype=torch.long), vectors)
    coder = IndexCoder(counts, vectors)
    one = np.arange(64).reshape(8, 8)
    assert np.array_equal(coder.decode(coder.encode(one), 8, 8), one)


def test_groups_are_equal_and_follow_the_first_component(generator: torch.Generator) -> None:
    vectors = torch.randn(48, 3, generator=generator)
    group = groups(vectors)
    assert np.bincount(group).tolist() == [4] * GROUPS
    assert (np.diff(group[vectors[:, 0].argsort().numpy()]) >= 0).all()


def test_nonsense_is_no_exception(generator: torch.Generator) -> None:
    coder = IndexCoder(IndexCounts(64), torch.randn(64, 2, generator=generator))
    for data in (b"", b"\xff" * 3, bytes(range(200))):
        got = coder.decode(data, 10, 10)
        assert got is None or got.shape == (10, 10)
    assert unpack(None) is None
    assert unpack(b"\1") is None
    assert unpack(Slice(3, 7, b"ab").pack()) == Slice(3, 7, b"ab")


@pytest.mark.parametrize(("h", "w", "planes"), [(90, 120, 1), (540, 960, 1), (4000, 40, 1), (360, 60, 8), (1, 1, 1)])
def test_slices_are_few_whole_and_of_a_thousand_indices(h: int, w: int, planes: int) -> None:
    rows = slice_rows(h, w, planes)
    assert rows % planes == 0
    assert -(-h // rows) <= 256
    if h * w > 3000 and h < 1000:
        assert 500 <= rows * w <= 3000


# -- over a link -------------------------------------------------------------------------------------------------------------


def send(system: GosVae, frames: Tensor, **link: float) -> tuple[list[Decoded], Ledger, list[dict[str, object]]]:
    cbr = float(link.pop("cbr", 0.3))
    ledger, fmt = Ledger(), Format(frames.shape[-2], frames.shape[-1], system="gos-vae", preset="small", cbr=cbr)
    steps = [Step(frame[None, None], {}, i) for i, frame in enumerate(frames)]
    with torch.no_grad():
        results = list(run(system, steps, Link(cbr=cbr, **link).eval(), ledger, fmt=fmt, generator=torch.Generator()))  # type: ignore[arg-type]
    return [result.decoded for result in results], ledger, [result.aux for result in results]


def test_the_receiver_shows_what_the_transmitter_quantised(fitted: GosVae, picture: Tensor) -> None:
    (decoded,), _, (aux,) = send(fitted, picture, snr_db=20.0)
    with torch.no_grad():
        made = fitted.synthesise(fitted.codebook(fitted.analyse(picture)).z_q).clamp(0, 1)
    assert aux["scale"] == 0
    assert torch.allclose(decoded.frames[0], made, atol=1e-5)  # type: ignore[index]
    assert decoded.concealed == 0


def test_a_smaller_budget_takes_a_smaller_picture_and_is_kept(fitted: GosVae, picture: Tensor) -> None:
    scales = []
    for cbr in (0.3, 0.05, 0.036):
        (decoded,), ledger, (aux,) = send(fitted, picture, cbr=cbr, snr_db=4.0)
        scales.append(aux["scale"])
        assert decoded.frames is not None
        assert decoded.frames.shape[-2:] == picture.shape[-2:]
        assert ledger.channel_uses - ledger.total(kind="header") <= cbr * 3 * 96 * 128
    assert scales[0] == 0 < scales[1] < scales[2]  # type: ignore[operator]
    with pytest.raises(BudgetError, match="quarter of the size"):
        send(fitted, picture, cbr=0.001)


def test_unspent_budget_is_said(fitted: GosVae, picture: Tensor) -> None:
    _, _, (aux,) = send(fitted, picture, cbr=0.5, snr_db=20.0)
    assert "less than the budget" in str(aux["rate_note"])


def test_sizes_at_scale_steps() -> None:
    assert scaled_size(360, 480, 0) == (360, 480)
    assert scaled_size(360, 480, 4) == (180, 240)
    assert scaled_size(360, 480, 8) == (90, 120)


def losing(fitted: GosVae, picture: Tensor, lost: set[int], pictures: int = 1) -> tuple[Tensor, Decoded]:
    """The last of equal pictures, one of whose packets did not arrive; beside what would have been shown."""
    fmt = Format(96, 128, cbr=0.5)
    link, random = Link(cbr=0.5, snr_db=20.0).eval(), torch.Generator()
    tx, rx = fitted.start(fmt, "tx"), fitted.start(fmt, "rx")
    for k in range(pictures):
        step = Step(picture[None])
        payload, tx, _ = fitted.encode(step, tx, *link.grant(step), generator=random)  # type: ignore[arg-type]
        packets: list[bytes | None] = [packet.data for packet in payload["indices"].packets[0]]  # type: ignore[union-attr, index]
        whole, _, _ = fitted.decode({"indices": [packets]}, rx, 1, generator=random)  # type: ignore[arg-type]
        if k == pictures - 1:
            packets = [None if i in lost else data for i, data in enumerate(packets)]
        decoded, rx, _ = fitted.decode({"indices": [packets]}, rx, 1, generator=random)  # type: ignore[arg-type]
    assert whole.frames is not None
    return whole.frames, decoded


@torch.no_grad()
def test_a_hole_is_filled(fitted: GosVae, picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semcast.systems.gosvae.coding.SLICE_INDICES", 128)
    whole, holed = losing(fitted, picture, {2})
    assert holed.concealed == 1
    assert holed.frames is not None
    rows = (holed.frames - whole).abs().amax((0, 1, 2, 4))
    assert 0 < int((rows > 1e-6).sum()) < 64  # the hole and what convolutions see of it
    assert float(rows[:20].max()) == 0


@torch.no_grad()
def test_a_hole_in_a_still_scene_is_not_seen(fitted: GosVae, picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semcast.systems.gosvae.coding.SLICE_INDICES", 128)
    whole, holed = losing(fitted, picture, {0, 3}, pictures=2)
    assert holed.concealed == 1
    assert torch.equal(holed.frames, whole)  # type: ignore[arg-type]


@torch.no_grad()
def test_where_nothing_arrives_the_last_picture_stays(fitted: GosVae, picture: Tensor) -> None:
    _, first = losing(fitted, picture, set(range(250)))
    assert float((first.frames - 0.5).abs().max()) == 0  # type: ignore[operator]
    whole, second = losing(fitted, picture, set(range(250)), pictures=2)
    assert torch.equal(second.frames, whole)  # type: ignore[arg-type]


def test_a_row_that_is_missing_lies_between_its_neighbours() -> None:
    heights = torch.tensor([9.0, 0, 0, 0, 5, 0, 0])
    known = torch.tensor([True, False, False, False, True, False, False])
    two = torch.stack([heights, 10 * heights], 1).flatten()  # two planes, their rows alternating
    codes = two.view(1, 1, -1, 1).expand(1, 3, -1, 2)
    filled = between_rows(codes, known.repeat_interleave(2), 2)
    assert filled[0, 1, ::2, 1].tolist() == [9, 8, 7, 6, 5, 5, 5]
    assert filled[0, 1, 1::2, 1].tolist() == [90, 80, 70, 60, 50, 50, 50]
    first = between_rows(codes, ~known.repeat_interleave(2), 2)
    assert torch.equal(first[:, :, :2], codes[:, :, 2:4])


@torch.no_grad()
def test_a_hole_between_neighbours_beats_one_of_grey(fitted: GosVae, picture: Tensor) -> None:
    indices = fitted.codebook.nearest(fitted.analyse(picture))
    known = torch.ones(indices.shape[1], dtype=torch.bool)
    known[10:14] = False
    guess = fitted._conceal(indices, known, None)
    assert torch.equal(guess[:, known], indices[:, known])
    whole, filled = (fitted.synthesise(fitted.codebook.lookup(one))[..., 40:56, :] for one in (indices, guess))
    assert float((filled - whole).square().mean()) < float((whole - whole.mean()).square().mean())


# -- losses ------------------------------------------------------------------------------------------------------------------


def test_divergences_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    m = (p + q) / 2
    kl = float((p * (p / q).log()).sum())
    js = float(0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum())
    log_p, log_q = (x.log().view(1, 3, 1, 1).expand(2, 3, 4, 5) for x in (p, q))
    assert float(kl_divergence(log_p, log_q)) == pytest.approx(kl, abs=1e-6)
    assert float(js_divergence(log_p, log_q)) == pytest.approx(js, abs=1e-6)
    assert float(js_divergence(log_q, log_p)) == pytest.approx(js, abs=1e-6)
    certain = torch.tensor([[0.0, -1e4, -1e4], [-1e4, 0.0, -1e4]])
    apart = js_divergence(certain[0].view(1, 3, 1, 1), certain[1].view(1, 3, 1, 1))
    assert float(apart) == pytest.approx(math.log(2), abs=1e-4)


def test_quantisation_loss_by_hand(generator: torch.Generator) -> None:
    z, e = (torch.randn(1, 2, 3, 3, generator=generator, requires_grad=True) for _ in range(2))
    loss = quantisation_loss(z, e)
    squared = float((z - e).detach().square().mean())
    assert float(loss.detach()) == pytest.approx((1 + BETA) * squared, rel=1e-5)
    loss.backward()
    assert torch.allclose(e.grad, 2 * (e - z).detach() / z.numel(), atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(z.grad, BETA * 2 * (z - e).detach() / z.numel(), atol=1e-6)  # type: ignore[arg-type]


class Colours(nn.Module):
    """A task model of three classes: the colours' own values as logits."""

    def forward(self, frames: Tensor) -> Tensor:
        return 4 * frames


def test_terms_are_those_of_the_equations(generator: torch.Generator) -> None:
    x, made = (torch.rand(2, 3, 8, 8, generator=generator) for _ in range(2))
    found = distortion({"mse": 1, "kld": 1, "jsd": 1, "ce": 1}, x, made, Colours(), None)
    s, s_hat = (4 * x).softmax(1), (4 * made).softmax(1)
    assert float(found["mse"]) == pytest.approx(float((x - made).square().mean()), rel=1e-5)
    assert float(found["kld"]) == pytest.approx(float((s * (s / s_hat).log()).sum(1).mean()), rel=1e-4)
    picked = s_hat.gather(1, s.argmax(1, keepdim=True))
    assert float(found["ce"]) == pytest.approx(float(-picked.log().mean()), rel=1e-4)
    same = distortion({"kld": 1, "jsd": 1}, x, x, Colours(), None)
    assert float(same["kld"]) == pytest.approx(0, abs=1e-6)
    assert float(same["jsd"]) == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_lowered_is_said() -> None:
    with pytest.raises(InputError, match="no loss term 'mea'"):
        check_terms({"mea": 1}, None)
    with pytest.raises(InputError, match="target: segmenter"):
        check_terms({"mse": 1, "jsd": 1}, None)
    with pytest.raises(InputError, match="vq-gan"):
        distortion({"gan": 1}, torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), None, None)


def test_generator_and_discriminator_learn_apart(generator: torch.Generator) -> None:
    critic = PatchDiscriminator(8)
    made = torch.rand(1, 3, 32, 32, generator=generator, requires_grad=True)
    found = adversarial(torch.rand(1, 3, 32, 32, generator=generator), made, critic)
    found["gan"].backward(retain_graph=True)
    assert all(p.grad is None for p in critic.parameters())
    assert made.grad is not None
    made.grad = None
    found["discriminator"].backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert made.grad is None


# -- sizes -------------------------------------------------------------------------------------------------------------------


def parameters(name: str) -> float:
    """Millions in encoder, decoder and codebook."""
    base, _, preset = name.partition(":")
    system = SYSTEMS.get(base).make(preset, "strong")
    return sum(p.numel() for part in (system.encoder, system.decoder, system.codebook) for p in part.parameters()) / 1e6


def test_published_sizes() -> None:
    """Table I: 0.70 M, 7.32 M, 0.13 M."""
    assert parameters("gos-vae:paper") == pytest.approx(0.70, abs=0.01)
    assert parameters("gos-vae:dagger") == pytest.approx(7.32, abs=0.03)
    assert parameters("autoencoder:paper") == pytest.approx(0.13, abs=0.02)
    assert parameters("vq-vae:paper") == parameters("gos-vae:paper")


@pytest.mark.parametrize("preset", ["small", "r2", "r8", "r16", "r32"])
def test_a_latent_stands_for_r_by_r_pixels(preset: str) -> None:
    system = SYSTEMS.get("gos-vae").make(preset, "strong").eval()
    r = {"small": 4}.get(preset) or int(preset[1:])
    with torch.no_grad():
        z = system.analyse(torch.rand(1, 3, 70, 100))
        assert z.shape[-2:] == (-(-70 // r), -(-100 // r))
        assert system.synthesise(z).shape[-2:] == (z.shape[-2] * r, z.shape[-1] * r)


def test_planes_go_there_and_back(generator: torch.Generator) -> None:
    """With the identity for encoder and decoder nothing moves."""
    system = SYSTEMS.get("autoencoder").make("small", "strong").eval()
    system.encoder, system.decoder = nn.Identity(), nn.Identity()
    x = torch.rand(2, 8, 16, 24, generator=generator)
    z = system.analyse(x)
    assert z.shape == (2, 1, 128, 24)
    assert torch.equal(z[0, 0, :8], x[0, :, 0])
    assert torch.equal(system.synthesise(z), x)


def test_the_closed_form_start_shows_the_picture(fitted: GosVae, picture: Tensor) -> None:
    with torch.no_grad():
        made = fitted.synthesise(fitted.codebook(fitted.analyse(picture)).z_q)
    psnr = float(-10 * (made - picture).square().mean().log10())
    assert psnr > 21
