"""The counter of `benchmarks/peers.py`: known answers, counted by hand."""

import pathlib

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_s_least_work(monkeypatch, transposed):
    """k4 s2 p1 between 4^3 x 3 and 2^3 x 5: each coarse place sees 3 of 4 voxels an axis."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peers

    w = torch.ones(5, 3, 4, 4, 4, requires_grad=True)
    fine, coarse = torch.ones(2, 3, 4, 4, 4), torch.ones(2, 5, 2, 2, 2)
    x = (coarse if transposed else fine).requires_grad_()
    convolve = torch.nn.functional.conv_transpose3d if transposed else torch.nn.functional.conv3d
    flops = 2 * (3 + 3) ** 3 * 2 * 3 * 5
    numbers = fine.numel() + coarse.numel() + w.numel()
    with peers.Counter() as forward:
        y = convolve(x, w, stride=2, padding=1)
    assert (forward.flops, forward.bytes) == (flops, 4 * numbers)
    with peers.Counter() as backward:  # reads the three, writes both gradients
        y.backward(torch.ones_like(y))
    assert backward.flops == 2 * flops
    assert backward.bytes == 4 * (numbers + x.numel() + w.numel())
