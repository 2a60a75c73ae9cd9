"""Winograd's convolution is the convolution, forward and backward, to float32's rounding."""
import pytest
import torch
import torch.nn.functional as F

from retinanet_plugin.execution import tiles, winograd
from retinanet_plugin.execution.winograd import (
    WinogradConvolutions,
    conv2d_with_winograd_gradients,
    winograd_conv2d,
)

# (images, height, width): whole tiles, ragged ones, smaller than a tile.
SIZES = [(2, 8, 12), (3, 9, 10), (1, 2, 3), (1, 1, 1)]


def operands(size, dtype=torch.float64, channels=5, out_channels=7):
    n, height, width = size
    x = torch.randn(n, channels, height, width, dtype=dtype)
    weight = torch.randn(out_channels, channels, 3, 3, dtype=dtype)
    return [t.requires_grad_() for t in (x, weight, torch.randn(out_channels, dtype=dtype))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("convolution", [winograd_conv2d, conv2d_with_winograd_gradients])
def test_output_and_gradients_equal_conv2d(convolution, size, layout, monkeypatch):
    monkeypatch.setattr(tiles, "CHUNK_SIZE", 2000)  # a few tiles, so that there are many chunks
    x, weight, bias = operands(size)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    out, expected = convolution(x, weight, bias), F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    grad = torch.randn_like(expected)
    actual = torch.autograd.grad(out, (x, weight, bias), grad)
    wanted = torch.autograd.grad(expected, (x, weight, bias), grad)
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


def test_gradients_that_nobody_wants_are_left_out():
    x, weight, bias = operands((1, 8, 8))
    x.requires_grad_(False)
    weight.requires_grad_(False)
    out = winograd_conv2d(x, weight, bias)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), bias)[0], bias.new_full((7,), 64.0))


def test_rounding_is_near_that_of_conv2d():
    x, weight, bias = (t.detach() for t in operands((2, 32, 32), torch.float32, 256, 32))
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)

    def error(out):
        return ((out - exact).norm() / exact.norm()).item()

    assert error(winograd_conv2d(x, weight, bias)) < 2e-6
    assert error(F.conv2d(x, weight, bias, padding=1)) > 2e-7  # twelve bits less than float64's


def test_output_can_be_changed_in_place():
    x, weight, bias = operands((1, 8, 8))
    F.relu_(winograd_conv2d(x, weight, bias)).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight, bias, padding=1).relu().sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected)


@pytest.fixture
def calls(monkeypatch):
    """The functions that the context calls in place of conv2d."""
    seen = []

    def spy(function):
        def spied(*args):
            seen.append(function.__name__)
            return function(*args)

        monkeypatch.setattr(winograd, function.__name__, spied)

    spy(winograd_conv2d)
    spy(conv2d_with_winograd_gradients)
    return seen


@pytest.fixture
def any_size(monkeypatch):
    """However small the input is, it is not left to conv2d for that."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_TILES", 1)


def test_without_gradients_the_context_takes_winograds_convolution(calls, any_size):
    module = torch.nn.Sequential(torch.nn.Conv2d(5, 7, 3, padding=1), torch.nn.ReLU())
    x = torch.randn(2, 5, 9, 9)
    with WinogradConvolutions(), torch.no_grad():
        out = module(x)
    assert calls == ["winograd_conv2d"]
    torch.testing.assert_close(out, module(x), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1  # outside of the context


def test_with_gradients_outputs_are_the_same_to_the_last_bit(calls, any_size):
    module = torch.nn.Conv2d(5, 7, 3, padding=1)
    x = torch.randn(2, 5, 9, 9)
    with WinogradConvolutions():
        out = module(x)
    assert calls == ["conv2d_with_winograd_gradients"]
    assert torch.equal(out, module(x))
    actual, expected = (torch.autograd.grad(y.sum(), module.weight) for y in (out, module(x)))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.Conv2d(4, 4, 1),
        torch.nn.Conv2d(4, 4, 3),
        torch.nn.Conv2d(4, 4, 3, padding=1, stride=2),
        torch.nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        torch.nn.Conv2d(4, 4, 3, padding=1, groups=2),
        torch.nn.Conv2d(4, 4, 3, padding="same"),
        torch.nn.Conv2d(4, 4, 3, padding=1).double(),
    ],
    ids=str,
)
def test_context_leaves_other_convolutions_alone(module, calls, any_size):
    x = torch.randn(1, 4, 8, 8, dtype=module.weight.dtype)
    with WinogradConvolutions():
        out = module(x)
    assert not calls
    assert torch.equal(out, module(x))


def test_context_leaves_autocast_alone(calls, any_size):
    module = torch.nn.Conv2d(4, 4, 3, padding=1)
    with WinogradConvolutions(), torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(1, 4, 8, 8)).dtype == torch.bfloat16
    assert not calls


def test_a_traced_model_has_plain_convolutions(calls, any_size):
    def convolve(x):
        with WinogradConvolutions():
            return F.conv2d(x, torch.ones(4, 4, 3, 3), padding=1)

    traced = torch.jit.trace(convolve, torch.randn(1, 4, 8, 8), check_trace=False)
    assert not calls
    assert "aten::_convolution" in str(traced.graph)


def test_context_leaves_small_convolutions_alone(calls):
    with WinogradConvolutions():
        torch.nn.Conv2d(128, 128, 3, padding=1)(torch.randn(1, 128, 8, 8))  # few tiles
        torch.nn.Conv2d(4, 4, 3, padding=1)(torch.randn(4, 4, 64, 64))  # few channels
    assert not calls
