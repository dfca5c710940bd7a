"""GDN, ChannelNorm, Swin blocks, warping and pyramid flow."""

from __future__ import annotations

import pytest
import torch

from semcast.layers.gdn import GDN, ChannelNorm
from semcast.layers.motion import PyramidFlow
from semcast.layers.swin import Merge, Split, SwinBlock, SwinStack
from semcast.layers.warp import pool_flow, warp


def moved(module: torch.nn.Module, by: float = 0.05) -> torch.nn.Module:
    """Every parameter off its start, so that nothing hides behind a nought."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return module


# -- normalisation -----------------------------------------------------------------------------------------------------------


def test_gdn_is_the_formula() -> None:
    torch.manual_seed(0)
    gdn = moved(GDN(3))
    x = torch.randn(2, 3, 4, 5)
    beta, gamma = gdn.beta_root.square(), gdn.gamma_root.square()
    for i in range(3):
        norm = (beta[i] + 1e-6 + sum(gamma[i, j] * x[:, j].square() for j in range(3))).sqrt()
        torch.testing.assert_close(gdn(x)[:, i], x[:, i] / norm)


def test_igdn_multiplies_by_what_gdn_divides_by() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(GDN(4)(x) * GDN(4, inverse=True)(x), x.square())


def test_gdn_evens_out_contrast() -> None:
    """A pattern ten times stronger comes out less than four times stronger."""
    x = torch.ones(1, 4, 8, 8)
    ratio = float((GDN(4)(10 * x) / GDN(4)(x)).detach().mean())
    assert 1 < ratio < 4


def test_channel_norm_leaves_no_mean_and_unit_variance() -> None:
    y = ChannelNorm(16)(5 + 3 * torch.randn(2, 16, 4, 4))
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, correction=0), torch.ones(2, 4, 4), atol=1e-4, rtol=0)


# -- Swin --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w"), [(4, 4), (1, 1), (2, 9), (5, 7), (8, 8), (13, 6)])
def test_swin_takes_any_grid(h: int, w: int) -> None:
    torch.manual_seed(0)
    y = SwinStack(8, 2, 2, 4)(torch.randn(2, 8, h, w))
    assert y.shape == (2, 8, h, w)
    assert bool(torch.isfinite(y).all())


def reach(block: SwinBlock, h: int, w: int, at: tuple[int, int]) -> torch.Tensor:
    """Which places a place of the output depends on, (h, w) bool."""
    x = torch.randn(1, 8, h, w, requires_grad=True)
    block(x)[0, :, at[0], at[1]].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(0) > 0


def test_attention_stays_within_its_window() -> None:
    torch.manual_seed(0)
    seen = reach(moved(SwinBlock(8, 2, 4, shifted=False)), 8, 8, (1, 6))  # type: ignore[arg-type]
    want = torch.zeros(8, 8, dtype=torch.bool)
    want[:4, 4:] = True
    assert torch.equal(seen, want)


def test_shifted_windows_straddle_and_do_not_wrap_round() -> None:
    torch.manual_seed(0)
    block = moved(SwinBlock(8, 2, 4, shifted=True))
    middle = reach(block, 8, 8, (3, 3))  # type: ignore[arg-type]
    want = torch.zeros(8, 8, dtype=torch.bool)
    want[2:6, 2:6] = True
    assert torch.equal(middle, want)
    corner = reach(block, 8, 8, (0, 7))  # type: ignore[arg-type]
    want = torch.zeros(8, 8, dtype=torch.bool)
    want[:2, 6:] = True
    assert torch.equal(corner, want)


@pytest.mark.parametrize("shifted", [False, True])
def test_padding_is_not_seen(shifted: bool) -> None:
    """A grid that does not divide into windows: its last window holds what is there and no more."""
    torch.manual_seed(0)
    seen = reach(moved(SwinBlock(8, 2, 4, shifted=shifted)), 6, 4, (5, 0))  # type: ignore[arg-type]
    want = torch.zeros(6, 4, dtype=torch.bool)
    want[4:] = True
    if shifted:
        want[2:] = True
    assert torch.equal(seen, want)


@torch.no_grad()
def test_position_matters() -> None:
    """Without the bias, attention would not know where a neighbour stands."""
    torch.manual_seed(0)
    block = moved(SwinBlock(8, 2, 4, shifted=False), 0.3)
    x = torch.randn(1, 8, 4, 4)
    mirrored = block(x.flip(3)).flip(3)
    assert float((mirrored - block(x)).abs().max()) > 1e-3
    block.position.data.zero_()
    torch.testing.assert_close(block(x.flip(3)).flip(3), block(x), atol=1e-5, rtol=1e-4)


def test_every_parameter_of_a_swin_block_learns() -> None:
    torch.manual_seed(0)
    stack = SwinStack(8, 2, 2, 4)
    stack(torch.randn(2, 8, 8, 8)).square().sum().backward()
    assert [name for name, p in stack.named_parameters() if p.grad is None or not bool((p.grad != 0).any())] == []


def test_merge_and_split_change_the_grid() -> None:
    assert Merge(4, 6)(torch.randn(1, 4, 8, 6)).shape == (1, 6, 4, 3)
    assert Split(6, 4)(torch.randn(1, 6, 4, 3)).shape == (1, 4, 8, 6)


# -- warp --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (1, 0), (-3, 2), (5, -4)])
def test_whole_pixels_are_a_shift(dx: int, dy: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 17, 23)
    flow = torch.tensor([dx, dy], dtype=torch.float32).reshape(1, 2, 1, 1).expand(2, 2, 17, 23)
    rows, columns = (torch.arange(17) + dy).clamp(0, 16), (torch.arange(23) + dx).clamp(0, 22)
    torch.testing.assert_close(warp(x, flow), x[:, :, rows][:, :, :, columns], atol=2e-5, rtol=0)


def test_half_a_pixel_is_the_mean_of_two() -> None:
    x = torch.rand(1, 1, 6, 8)
    flow = torch.zeros(1, 2, 6, 8)
    flow[:, 0] = 0.5
    want = (x[..., :-1] + x[..., 1:]) / 2
    torch.testing.assert_close(warp(x, flow)[..., :-1], want, atol=1e-5, rtol=0)


def test_flow_gets_a_gradient() -> None:
    """Downhill is towards the true shift."""
    ramp = torch.arange(16.0).expand(1, 1, 8, 16)
    target = warp(ramp, torch.full((1, 2, 8, 16), 2.0))
    flow = torch.zeros(1, 2, 8, 16, requires_grad=True)
    (warp(ramp, flow) - target).square().sum().backward()
    assert flow.grad is not None
    assert bool((flow.grad[:, 0, :, 2:-3] < 0).all())


def test_pooled_flow_is_in_coarser_pixels() -> None:
    flow = torch.full((1, 2, 32, 32), 8.0)
    assert torch.equal(pool_flow(flow, 16), torch.full((1, 2, 2, 2), 0.5))


# -- motion ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w"), [(64, 64), (33, 50)])
def test_motion_starts_as_none(h: int, w: int) -> None:
    flow = PyramidFlow(3, (4, 4))(torch.rand(2, 3, h, w), torch.rand(2, 3, h, w))
    assert flow.shape == (2, 2, h, w)
    assert not bool(flow.any())


def test_motion_learns_a_shift() -> None:
    torch.manual_seed(0)
    net = PyramidFlow(3, (8, 8))
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), (40, 40), mode="bicubic", align_corners=False)
    before, now = picture[..., :32, :32], picture[..., :32, 3:35]
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    first = None
    for _ in range(60):
        loss = (warp(before, net(now, before)) - now)[..., :-4].square().mean()
        first = first or float(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.2 * first
    assert float(net(now, before).detach()[:, 0, 8:24, 8:24].mean()) == pytest.approx(3, abs=1)
