"""The digital chains without a channel: frames out equal frames in, whatever is lost."""

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from semcast.errors import BudgetError
from semcast.systems.conditions import Condition, load_condition
from semcast.systems.digital.system import CODECS, DigitalSystem
from semcast.types import Budget, Csi, Format, Step

VIDEO = ["h264", "h265", "av1", "mjpeg"]
PICTURES = ["jpeg", "jpeg2000", "hevc-intra"]
GOP = 6


def clip(frames: int = 13, height: int = 64, width: int = 96) -> Tensor:
    """A textured pattern that moves one pixel per frame, (t, 3, H, W)."""
    generator = torch.Generator().manual_seed(1)
    texture = torch.rand(1, 3, height // 8 + 3, width // 8 + 12, generator=generator)
    wide = torch.nn.functional.interpolate(texture, scale_factor=8, mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return torch.stack([wide[:, 4 : 4 + height, 8 + k : 8 + k + width] for k in range(frames)])


def condition(name: str = "strong", gop: int = GOP) -> Condition:
    return load_condition(name).model_copy(update={"gop": gop, "packet_bytes": 200, "gather_bytes": 100})


def session(
    system: DigitalSystem, frames: Tensor, bytes_per_frame: int, damage: Callable[[list[bytes]], list[bytes | None]] = list
) -> tuple[Tensor, list[list[bytes]], int]:
    """Frames shown, packets sent, frames concealed; checks the frame clock at every step."""
    generator = torch.Generator()
    fmt = Format(*frames.shape[-2:])
    tx, rx = system.start(fmt, "tx"), system.start(fmt, "rx")
    shown, sent, concealed, spent, earned = [], [], 0, 0, 0
    for part in frames.split(system.frames_per_step):
        earned += bytes_per_frame * len(part)
        budget = Budget(0, 0, 0.1, 1.0, earned - spent)
        payload, tx, _ = system.encode(Step(part[None]), tx, Csi(torch.zeros(1)), budget, generator=generator)
        packets = [packet.data for packet in payload["video"].packets[0]]
        size = sum(len(packet) + 2 for packet in packets)
        assert size <= budget.payload_bytes
        spent += size
        sent.append(packets)
        decoded, rx, _ = system.decode({"video": [damage(packets)]}, rx, len(part), generator=generator)
        assert decoded.frames is not None
        assert decoded.frames.shape == (1, *part.shape)
        assert decoded.frames.min() >= 0
        assert decoded.frames.max() <= 1
        assert 0 <= decoded.concealed <= len(part)
        shown.append(decoded.frames[0])
        concealed += decoded.concealed
    return torch.cat(shown), sent, concealed


def psnr_db(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


@pytest.mark.parametrize("codec", VIDEO + PICTURES)
def test_clean_session_is_good_and_deterministic(codec: str) -> None:
    frames = clip(13 if codec in VIDEO else 3)
    budget = 1500 if codec in (*PICTURES, "mjpeg") else 500
    shown, sent, concealed = session(DigitalSystem(codec, condition()), frames, budget)
    assert concealed == 0
    assert psnr_db(shown, frames) > 30
    again, sent_again, _ = session(DigitalSystem(codec, condition()), frames, budget)
    assert sent == sent_again
    assert torch.equal(shown, again)


@pytest.mark.parametrize("name", ["offline", "dvst-paper"])
@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
def test_other_conditions(codec: str, name: str) -> None:
    frames = clip(9)
    shown, _, concealed = session(DigitalSystem(codec, condition(name, 9)), frames, 500)
    assert concealed == 0
    assert psnr_db(shown, frames) > 30


@pytest.mark.parametrize("codec", VIDEO)
def test_more_bytes_more_quality(codec: str) -> None:
    frames = clip(6)
    few, many = (session(DigitalSystem(codec, condition()), frames, size)[0] for size in (350, 1400))
    assert psnr_db(many, frames) > psnr_db(few, frames) + 2


@pytest.mark.parametrize("codec", VIDEO + PICTURES)
@pytest.mark.parametrize("seed", range(3))
def test_any_loss_keeps_the_frame_clock(codec: str, seed: int) -> None:
    rng = random.Random(seed)
    frames = clip(13 if codec in VIDEO else 3)
    probability = (0.1, 0.4, 0.8)[seed]
    shown, _, _ = session(
        DigitalSystem(codec, condition()),
        frames,
        900,
        lambda packets: [None if rng.random() < probability else p for p in packets],
    )
    assert torch.isfinite(shown).all()


@pytest.mark.parametrize("codec", VIDEO)
def test_loss_under_reordering(codec: str) -> None:
    rng = random.Random(5)
    frames = clip(12)
    session(DigitalSystem(codec, condition("offline")), frames, 900, lambda ps: [None if rng.random() < 0.3 else p for p in ps])


@pytest.mark.parametrize("codec", VIDEO + PICTURES)
def test_nothing_arrives_is_mid_grey(codec: str) -> None:
    frames = clip(7 if codec in VIDEO else 2)
    shown, _, concealed = session(DigitalSystem(codec, condition()), frames, 900, lambda packets: [None] * len(packets))
    assert concealed == len(frames)
    assert torch.equal(shown, torch.full_like(shown, 0.5))
    silent, _, _ = session(DigitalSystem(codec, condition()), frames, 900, lambda packets: [])
    assert torch.equal(silent, shown)


@pytest.mark.parametrize("codec", VIDEO + PICTURES)
def test_first_packet_lost(codec: str) -> None:
    frames = clip(13 if codec in VIDEO else 3)
    shown, _, concealed = session(DigitalSystem(codec, condition()), frames, 900, lambda packets: [None, *packets[1:]])
    assert concealed > 0
    assert torch.isfinite(shown).all()


@pytest.mark.parametrize("codec", VIDEO + PICTURES)
def test_garbage_never_raises(codec: str) -> None:
    rng = random.Random(3)

    def spoil(packets: list[bytes]) -> list[bytes | None]:
        return [bytes(b if rng.random() > 0.02 else rng.randrange(256) for b in p) for p in packets]

    session(DigitalSystem(codec, condition()), clip(13 if codec in VIDEO else 3), 900, spoil)
    session(
        DigitalSystem(codec, condition()), clip(6 if codec in VIDEO else 1), 900, lambda ps: [rng.randbytes(len(p)) for p in ps]
    )


@pytest.mark.parametrize("codec", VIDEO + PICTURES)
@pytest.mark.parametrize(("height", "width", "count"), [(67, 81, 1), (65, 64, 2)])
def test_odd_sizes_and_single_frames(codec: str, height: int, width: int, count: int) -> None:
    frames = clip(count, height, width)
    shown, _, concealed = session(DigitalSystem(codec, condition()), frames, 2500)
    assert concealed == 0
    assert psnr_db(shown, frames) > 30


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_lost_inter_frame_is_repeated_not_painted_grey(codec: str) -> None:
    frames = clip(GOP)
    whole = condition().model_copy(update={"packet_bytes": 8000, "gather_bytes": 0})
    system = DigitalSystem(codec, whole)
    clean, sent, _ = session(system, frames, 900)
    victim = next(k for k, packet in enumerate(sent[0]) if packet[2] == 2)
    shown, _, concealed = session(system, frames, 900, lambda ps: [None if k == victim else p for k, p in enumerate(ps)])
    assert concealed == 1
    assert torch.equal(shown[:2], clean[:2])
    assert torch.equal(shown[2], shown[1])
    # what follows is predicted from the repeated frame: one pixel off, far from the 10 dB or so of a grey reference
    assert min(psnr_db(a, b) for a, b in zip(shown[3:], clean[3:], strict=True)) > psnr_db(frames[2], frames[1]) - 3


def test_a_lost_intra_frame_continues_the_group_before() -> None:
    frames = clip(2 * GOP)
    whole = condition().model_copy(update={"packet_bytes": 8000, "gather_bytes": 0})
    steps = iter(range(2))

    def lose(packets: list[bytes]) -> list[bytes | None]:
        second = next(steps) == 1
        return [None if second and packet[2] == 0 else packet for packet in packets]

    shown, _, concealed = session(DigitalSystem("h265", whole), frames, 900, lose)
    assert concealed == 1
    assert torch.equal(shown[GOP], shown[GOP - 1])
    frozen = [psnr_db(frames[GOP - 1], frame) for frame in frames[GOP + 1 :]]
    assert all(psnr_db(a, b) > f + 0.5 for a, b, f in zip(shown[GOP + 1 :], frames[GOP + 1 :], frozen, strict=True))


def test_recovers_at_the_next_intra_frame() -> None:
    frames = clip(3 * GOP)
    for codec in VIDEO:
        clean, _, _ = session(DigitalSystem(codec, condition()), frames, 900)
        steps = iter(range(3))

        def lose(packets: list[bytes], steps: Iterator[int] = steps) -> list[bytes | None]:
            return [None] * len(packets[:4]) + list(packets[4:]) if next(steps) == 1 else list(packets)

        shown, _, _ = session(DigitalSystem(codec, condition()), frames, 900, lose)
        assert torch.equal(shown[:GOP], clean[:GOP])
        assert torch.equal(shown[2 * GOP :], clean[2 * GOP :])
        assert not torch.equal(shown, clean)


@pytest.mark.parametrize("codec", VIDEO)
def test_small_budgets_scale_down_or_say_no(codec: str) -> None:
    frames = clip(GOP, 128, 160)
    system = DigitalSystem(codec, condition())
    least = {"h264": 100, "h265": 82, "av1": 106, "mjpeg": 148}[codec]  # of a first frame size that is too dear
    shown, sent, _ = session(system, frames, least)
    assert shown.shape == frames.shape
    assert sent[0]
    assert psnr_db(shown, frames) > psnr_db(torch.full_like(frames, 0.5), frames)
    with pytest.raises(BudgetError, match="raise --cbr"):
        session(system, frames, 2)


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_the_last_frame_of_a_clip_joins_the_group_before(codec: str) -> None:
    frames = clip(17)
    system = DigitalSystem(codec, condition(gop=16))
    shown, sent, concealed = session(system, frames, 400)
    assert concealed == 0
    assert len(sent) == 2
    assert psnr_db(shown[-1], frames[-1]) > psnr_db(shown[-2], frames[-2]) - 1
    lost = iter([False, True])
    shown, _, concealed = session(system, frames, 400, lambda ps: [None] * len(ps) if next(lost) else list(ps))
    assert concealed == 1
    assert torch.equal(shown[16], shown[15])


def test_budget_beyond_lossless_is_said() -> None:
    system = DigitalSystem("h264", condition())
    step, state = Step(clip(3)[None]), system.start(Format(64, 96), "tx")
    _, _, aux = system.encode(step, state, Csi(torch.zeros(1)), Budget(0, 0, 1.0, 1.0, 10**6), generator=torch.Generator())
    assert "best quality" in aux["rate_note"]


def test_every_codec_has_a_spec() -> None:
    from semcast.systems.digital import system as module

    for codec in CODECS:
        spec = getattr(module, codec.replace("-", "_").upper() + "_LDPC")
        made = spec.make("default", "strong")
        assert (made.name, made.modem_kind, spec.kind) == (spec.name, "ldpc", "digital")
        assert made.frames_per_step == (1 if spec.picture else 32)
    assert module.H265_CAPACITY.make("default", "dvst-paper").modem_kind == "capacity"
    assert module.H265_CAPACITY.make("default", "dvst-paper").frames_per_step == 4
