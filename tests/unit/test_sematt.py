"""SemAtt against a loop over pixels and an explicit adjacency; maps and their coders; what a lost map costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semcast.errors import InputError
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems.sematt import make_dynamic, make_sematt
from semcast.systems.sematt.attention import EPS, SemAtt
from semcast.systems.sematt.maps import CODERS, MapCoder, class_map
from semcast.systems.sematt.networks import PaperConfig
from semcast.systems.sematt.small import SmallConfig
from semcast.systems.sematt.system import SemAttSystem
from semcast.types import Budget, Csi, Format, Step

TINY = SmallConfig(C=16, latents=256, encoder_blocks=1, decoder_blocks=1, classes=4, extra="attention")


def naive(module: SemAtt, features: Tensor, classes: Tensor) -> Tensor:
    """Eqs. (1) to (5) as they are printed, with the adjacency L x L, one picture (C, h, w) at a time."""
    C, h, w = features.shape
    f, m = features.reshape(C, -1).double(), classes.reshape(-1)
    a = (m[:, None] == m[None, :]).double()  # eq. (1)
    size = a.sum(0)
    d = f - f @ a / size  # eq. (2)
    phi = torch.empty_like(f)
    for j in range(h * w):
        inside = a[j].bool()
        psi = torch.exp(d[:, inside] @ d[:, inside].T / size[j])
        phi[:, j] = f[:, j] + (psi / psi.sum(1, keepdim=True)) @ f[:, j]  # eqs. (3), (4)
    mean = phi @ a / size
    variance = ((phi - mean).square() @ a) / size
    z = (phi - mean) / (variance + EPS).sqrt() * module.w.double()[:, m] + module.b.double()[:, m]  # eq. (5)
    return z.reshape(C, h, w).float()


@pytest.fixture
def module(generator: torch.Generator) -> SemAtt:
    made = SemAtt(5, 6)
    with torch.no_grad():
        made.w.copy_(torch.randn(5, 6, generator=generator))
        made.b.copy_(torch.randn(5, 6, generator=generator))
    return made


@torch.no_grad()
def test_sematt_is_its_equations(module: SemAtt, generator: torch.Generator) -> None:
    """Three pictures: one with all classes, one with some absent and one that has a single pixel, one all unknown."""
    features = torch.randn(3, 5, 7, 9, generator=generator)
    classes = torch.randint(0, 6, (3, 7, 9), generator=generator)
    classes[1] = classes[1] % 2
    classes[1, 3, 4] = 4
    classes[2] = 5
    found = module(features, classes)
    for one, what, map_ in zip(found, features, classes, strict=True):
        assert torch.allclose(one, naive(module, what, map_), atol=1e-4)


@torch.no_grad()
def test_a_class_of_one_pixel_is_left_with_its_bias(module: SemAtt, generator: torch.Generator) -> None:
    classes = torch.zeros(1, 4, 4, dtype=torch.int64)
    classes[0, 2, 1] = 3
    found = module(torch.randn(1, 5, 4, 4, generator=generator), classes)
    assert torch.allclose(found[0, :, 2, 1], module.b[:, 3])


@torch.no_grad()
def test_pictures_and_regions_do_not_mix(module: SemAtt, generator: torch.Generator) -> None:
    """Other pixels of one class change nothing elsewhere, nor does the batch."""
    features = torch.randn(2, 5, 6, 6, generator=generator)
    classes = torch.zeros(2, 6, 6, dtype=torch.int64)
    classes[:, 3:] = 1
    changed = features.clone()
    changed[:, :, 3:] = 7 * changed[:, :, 3:] + 1
    before, after = module(features, classes), module(changed, classes)
    assert torch.allclose(before[:, :, :3], after[:, :, :3], atol=1e-6)
    assert torch.allclose(before[:1], module(features[:1], classes[:1]), atol=1e-6)


def test_gradients_reach_what_is_there(module: SemAtt, generator: torch.Generator) -> None:
    """Columns of absent classes get none, those of present ones do; all are finite, one-pixel classes included."""
    features = torch.randn(1, 5, 6, 6, generator=generator, requires_grad=True)
    classes = torch.zeros(1, 6, 6, dtype=torch.int64)
    classes[0, 0, 0] = 2
    module(features, classes).square().sum().backward()
    assert module.w.grad is not None
    assert module.b.grad is not None
    assert features.grad is not None
    assert bool(torch.isfinite(features.grad).all())
    assert bool((module.w.grad[:, 0] != 0).all())
    assert bool((module.b.grad[:, 2] != 0).all())
    assert not bool(module.w.grad[:, [1, 3, 4, 5]].any())


# -- maps --------------------------------------------------------------------------------------------------------------------


def test_a_cell_takes_its_commonest_class_and_strange_labels_are_unknown() -> None:
    labels = torch.zeros(1, 16, 20, dtype=torch.int64)
    labels[0, :8, :5] = 2
    labels[0, 8:, 8:] = 255
    labels[0, 8:, :8] = -1
    assert class_map(labels, 8, 16, 4)[0].tolist() == [[2, 0, 0, 0], [3, 3, 3, 3]]


def drawn(random: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A map of large patches."""
    return np.kron(random.integers(0, 4, (-(-h // 4), -(-w // 4))), np.ones((4, 4), dtype=np.int64))[:h, :w]


@pytest.fixture
def coder() -> MapCoder:
    random = np.random.default_rng(0)
    made = MapCoder(4)
    made.fit(torch.from_numpy(np.stack([drawn(random, 12, 16) for _ in range(40)])))
    return made


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 9), (7, 1), (12, 16), (23, 30)])
def test_every_coder_is_lossless(coder: MapCoder, h: int, w: int) -> None:
    one = drawn(np.random.default_rng(h * w), h, w)
    found = coder.candidates(one)
    for index, name in enumerate(CODERS):
        assert np.array_equal(coder.decode(bytes([index]) + found[name], h, w), one)
    assert len(coder.encode(one)) == 1 + min(map(len, found.values()))


def test_the_range_coder_comes_close_to_its_model(coder: MapCoder) -> None:
    one = drawn(np.random.default_rng(9), 40, 60)
    size = 8 + 8 * len(coder.candidates(one)["range"])
    assert coder.bits(one) <= size + 1 <= coder.bits(one) + 42


def test_the_shortest_is_not_always_the_same(coder: MapCoder) -> None:
    """Small maps go to the range coder, large ones of regular patches to WebP, which looks further back."""
    chosen = [coder.encode(drawn(np.random.default_rng(9), *size))[0] for size in ((12, 16), (40, 60))]
    assert [CODERS[index] for index in chosen] == ["range", "webp"]


def test_a_flat_map_costs_next_to_nothing(coder: MapCoder) -> None:
    assert len(coder.encode(np.full((46, 60), 3, dtype=np.int64))) < 60


@pytest.mark.parametrize("head", [b"", b"\0", b"\1", b"\2", b"\3", b"\xff"])
def test_damaged_maps_are_none_or_of_the_right_size(coder: MapCoder, head: bytes) -> None:
    random = np.random.default_rng(1)
    whole = coder.encode(drawn(random, 12, 16))
    png = b"\1" + coder.candidates(drawn(random, 12, 16))["png"]
    for data in (head, head + bytes(random.integers(0, 256, 40).tolist()), whole[:-3], png[:-20], png[:60] + png[70:]):
        found = coder.decode(data, 12, 16)
        assert found is None or (found.shape == (12, 16) and 0 <= found.min() <= found.max() < 4)
    assert coder.decode(png, 12, 17) is None


# -- the systems -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(clip: Any) -> SemAttSystem:
    """SemAttJSCC, fitted to four classes, which are columns of a clip."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        system = SemAttSystem("sematt-jscc", "small", TINY)
        frames = torch.cat([clip(3, 80, 96, seed=seed) for seed in range(5)])
        system.initialise(*striped(frames))
    system.maps = "truth"
    return system.eval()


def striped(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Frames (N, 3, H, W) in which four columns differ in brightness, and which column it is."""
    labels = torch.arange(frames.shape[-1]).mul(3).div(frames.shape[-1] - 1, rounding_mode="floor")
    tint = torch.tensor([0.0, 0.45, 0.1, 0.55])[labels]
    return 0.4 * frames + tint, labels.expand(len(frames), *frames.shape[-2:]).long()


class Held:
    """Both ends of one session with a link between them."""

    def __init__(self, system: SemAttSystem, frame: Tensor, labels: Tensor | None, **link: Any) -> None:
        self.system = system
        self.fmt = Format(*frame.shape[-2:], system=system.name, preset=system.preset, cbr=link.get("cbr", 1 / 12))
        self.link, self.ledger = Link("awgn", **link).eval(), Ledger()
        self.step = Step(frame[None, None], {} if labels is None else {"segmentation": labels[None, None]})
        self.random = torch.Generator().manual_seed(0)
        payload, _, _ = system.encode(
            self.step, system.start(self.fmt, "tx"), *self.link.grant(self.step), generator=self.random
        )
        self.payload = dict(payload)
        self.received = dict(self.link.send(payload, self.ledger, generator=self.random))

    def psnr_db(self, **changed: Any) -> tuple[float, int]:
        """With some of what was received replaced; and how many frames count as concealed."""
        decoded, _, _ = self.system.decode(
            {**self.received, **changed}, self.system.start(self.fmt, "rx"), 1, generator=self.random
        )
        assert decoded.frames is not None
        assert decoded.frames.shape == self.step.frames.shape
        assert bool(torch.isfinite(decoded.frames).all())
        return float(-10 * torch.log10((decoded.frames - self.step.frames).square().mean())), decoded.concealed


@torch.no_grad()
def test_a_map_helps_and_its_loss_is_concealed(tiny: SemAttSystem, clip: Any) -> None:
    frames, labels = striped(clip(1, 80, 96, seed=9))
    held = Held(tiny, frames[0], labels[0], snr_db=0.0)
    blank = Held(tiny, frames[0], torch.full_like(labels[0], 9), snr_db=0.0)
    whole, concealed = held.psnr_db()
    assert concealed == 0
    assert whole > blank.psnr_db()[0] + 1
    for lost in ([[None]], [[b""]], [[b"\0"]], [[b"\1garbage"]]):
        assert held.psnr_db(map=lost)[1] in (0, 1)
    without, concealed = held.psnr_db(map=[[None]])
    assert concealed == 1
    assert 5 < without < whole
    assert held.psnr_db(scale=[[None]])[1] == 1
    assert held.psnr_db(scale=[[None]])[0] > whole - 6


@torch.no_grad()
def test_maps_are_charged_unless_they_are_assumed_free(tiny: SemAttSystem, clip: Any) -> None:
    """Free maps leave their uses to the picture; charged ones are paid within the same budget."""
    frames, labels = striped(clip(1, 160, 192, seed=9))
    charged, free = (
        Held(tiny, frames[0], labels[0], snr_db=6.0, cbr=0.06, assumed_free=frozenset(names)) for names in ((), ("map",))
    )
    budget = 0.06 * charged.step.frames.numel()
    assert charged.ledger.streams()["map"] > 50
    assert free.ledger.total(free=True) == charged.ledger.streams()["map"] + charged.ledger.streams()["map/control"]
    assert "map" not in free.ledger.streams()
    for held in (charged, free):
        assert budget - 2 < held.ledger.channel_uses <= budget
    assert free.ledger.streams()["latent"] > charged.ledger.streams()["latent"]


@torch.no_grad()
def test_maps_go_by_the_papers_scheme_where_asked(tiny: SemAttSystem, clip: Any) -> None:
    frames, labels = striped(clip(1, 80, 96))
    tiny.map_mcs = "qpsk-1/3"
    held = Held(tiny, frames[0], labels[0], snr_db=20.0)
    size = len(held.payload["map"].packets[0][0].data)  # type: ignore[union-attr,index]
    assert held.ledger.streams()["map"] >= 8 * size * 3 / 2


@torch.no_grad()
def test_where_maps_come_from(tiny: SemAttSystem, clip: Any) -> None:
    """True labels, a segmenter's, or none at all; the truth that is not there is a fault of the input."""
    frames, labels = striped(clip(1, 80, 96))
    seen: list[tuple[int, ...]] = []

    def segmenter(pictures: Tensor) -> Tensor:
        seen.append(tuple(pictures.shape))
        return labels

    truth = Held(tiny, frames[0], labels[0])
    tiny.maps, tiny.segmenter = "predicted", segmenter
    predicted = Held(tiny, frames[0], labels[0] * 0)
    assert seen == [(1, 3, 80, 96)]
    assert predicted.payload["map"].packets == truth.payload["map"].packets  # type: ignore[union-attr]
    tiny.segmenter = None
    assert len(Held(tiny, frames[0], None).payload["map"].packets[0][0].data) < 40  # type: ignore[union-attr,index]
    tiny.maps = "truth"
    with pytest.raises(InputError, match="have none"):
        Held(tiny, frames[0], None)


@torch.no_grad()
@pytest.mark.parametrize(("cbr", "K"), [(1 / 12, 8), (1 / 6, 16)])
def test_the_published_networks_send_k_channels(cbr: float, K: int, clip: Any) -> None:
    """Where maps are free: R = K / 96."""
    torch.manual_seed(0)
    system = SemAttSystem("sematt-jscc", "paper", PaperConfig(extra="attention", C=16, K=K, classes=12)).eval()
    frames, labels = striped(clip(1, 64, 80))
    system.maps = "truth"
    held = Held(system, frames[0], labels[0], cbr=cbr, assumed_free=frozenset({"map"}))
    assert held.ledger.streams() == {"latent": K * 16 * 20 // 2}
    assert held.ledger.channel_uses == pytest.approx(cbr * frames.numel())


def test_table_1_counts_parameters() -> None:
    """In millions, as printed: 6.57, 6.64, 11.33; what [7] adds is not said in full, and a block more everywhere is close."""

    def millions(system: SemAttSystem) -> float:
        return sum(p.numel() for p in system.parameters()) / 1e6

    assert millions(make_dynamic("paper", "strong")) == pytest.approx(6.57, abs=0.005)
    assert millions(make_sematt("paper", "strong")) == pytest.approx(6.64, abs=0.005)
    assert millions(make_dynamic("paper-convolutions", "strong")) == pytest.approx(11.33, rel=0.005)


def test_both_are_the_same_but_for_maps() -> None:
    one, other = (dict(make("small", "strong").named_parameters()) for make in (make_dynamic, make_sematt))
    assert {name: p.shape for name, p in other.items() if ".attention." not in name} == {n: p.shape for n, p in one.items()}


@torch.no_grad()
def test_training_and_deployment_agree(tiny: SemAttSystem, clip: Any) -> None:
    """The same symbols from the same map, where no uses are taken off for packets."""
    frames, labels = striped(clip(1, 80, 96))
    step = Step(frames[:, None], {"segmentation": labels[:, None]})
    csi = Csi(torch.tensor([7.0]))
    budget = Budget(1500, 1500, 1 / 12, uses_for_packets=lambda sizes, mcs: 0)
    fmt = Format(80, 96, cbr=1 / 12)
    sent = []
    for mode in (False, True):
        tiny.train(mode)
        payload, _, _ = tiny.encode(step, tiny.start(fmt, "tx"), csi, budget, generator=torch.Generator())
        sent.append(payload["latent"].x)  # type: ignore[union-attr]
    assert torch.equal(*sent)
