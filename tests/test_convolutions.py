"""Fast algorithms compute the convolution, forward and backward, to float32's rounding."""

import pytest
import torch
import torch.nn.functional as F

from retinanet_plugin.execution import convolutions, pointwise, tiles, winograd
from retinanet_plugin.execution.convolutions import FastConvolutions, conv2d

# (algorithm, kernel, stride); every kernel is padded to keep the size at stride 1.
CASES = {
    "Winograd": (winograd, 3, (1, 1)),
    "pointwise": (pointwise, 1, (1, 1)),
    "pointwise, strides": (pointwise, 1, (2, 3)),
}
# (images, height, width): whole tiles, ragged ones, smaller than a tile.
SIZES = [(2, 8, 12), (3, 9, 10), (1, 2, 3), (1, 1, 1)]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "cropped": lambda x: F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1],
}


def operands(size, kernel, dtype=torch.float64, channels=5, out_channels=7):
    n, height, width = size
    x = torch.randn(n, channels, height, width, dtype=dtype)
    weight = torch.randn(out_channels, channels, kernel, kernel, dtype=dtype)
    return [t.requires_grad_() for t in (x, weight, torch.randn(out_channels, dtype=dtype))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_equal_conv2d(case, layout, size, monkeypatch):
    monkeypatch.setattr(tiles, "CHUNK_SIZE", 2000)  # a few tiles, so that there are many chunks
    algorithm, kernel, stride = CASES[case]
    padding = (kernel // 2, kernel // 2)
    x, weight, bias = operands(size, kernel)
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    expected = F.conv2d(x, weight, bias, stride, padding)
    with torch.no_grad():
        out = conv2d(x, weight, bias, stride, padding, algorithm)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    out = conv2d(x, weight, bias, stride, padding, algorithm)
    assert torch.equal(out, expected)
    grad = LAYOUTS[layout](torch.randn_like(expected))
    actual = torch.autograd.grad(out, (x, weight, bias), grad)
    wanted = torch.autograd.grad(expected, (x, weight, bias), grad)
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_gradients_by_the_input_are_laid_out_as_it_is(case, layout):
    algorithm, kernel, stride = CASES[case]
    x, weight, _ = operands((2, 8, 12), kernel)
    x = LAYOUTS[layout](x.detach()).requires_grad_()
    out = conv2d(x, weight, None, stride, (kernel // 2, kernel // 2), algorithm)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.stride() == x.stride()


@pytest.mark.parametrize("case", CASES)
def test_gradients_that_nobody_wants_are_left_out(case):
    algorithm, kernel, stride = CASES[case]
    x, weight, bias = operands((1, 8, 8), kernel)
    x.requires_grad_(False)
    weight.requires_grad_(False)
    out = conv2d(x, weight, bias, stride, (kernel // 2, kernel // 2), algorithm)
    (grad,) = torch.autograd.grad(out.sum(), bias)
    torch.testing.assert_close(grad, bias.new_full((7,), out[0, 0].numel()))


def test_rounding_is_near_that_of_conv2d():
    x, weight, bias = (t.detach() for t in operands((2, 32, 32), 3, torch.float32, 256, 32))
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)

    def error(out):
        return ((out - exact).norm() / exact.norm()).item()

    assert error(winograd.convolve(x, weight, bias, (1, 1))) < 2e-6
    assert error(F.conv2d(x, weight, bias, padding=1)) > 2e-7  # twelve bits less than float64's


@pytest.mark.parametrize("case", CASES)
def test_output_can_be_changed_in_place(case):
    algorithm, kernel, stride = CASES[case]
    x, weight, bias = operands((1, 8, 8), kernel)
    padding = (kernel // 2, kernel // 2)
    F.relu_(conv2d(x, weight, bias, stride, padding, algorithm)).sum().backward()
    expected = F.conv2d(x, weight, bias, stride, padding).relu().sum()
    torch.testing.assert_close(weight.grad, torch.autograd.grad(expected, weight)[0])


@pytest.fixture
def calls(monkeypatch):
    """The algorithms that the context calls in place of PyTorch's."""
    seen = []

    def spy(*args):
        seen.append(args[-1])
        return conv2d(*args)

    monkeypatch.setattr(convolutions, "conv2d", spy)
    return seen


@pytest.fixture
def any_size(monkeypatch):
    """However small the input is, it is not left to PyTorch for that."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_TILES", 1)


MODULES = [
    (winograd, torch.nn.Conv2d(5, 7, 3, padding=1)),
    (pointwise, torch.nn.Conv2d(5, 7, 1)),
    (pointwise, torch.nn.Conv2d(5, 7, 1, stride=2, bias=False)),
]


@pytest.mark.parametrize(("algorithm", "module"), MODULES, ids=str)
def test_without_gradients_outputs_are_the_algorithms(algorithm, module, calls, any_size):
    module = torch.nn.Sequential(module, torch.nn.ReLU())
    x = torch.randn(2, 5, 9, 9)
    with FastConvolutions(), torch.no_grad():
        out = module(x)
    assert calls == [algorithm]
    torch.testing.assert_close(out, module(x), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1  # outside of the context


@pytest.mark.parametrize(("algorithm", "module"), MODULES, ids=str)
def test_with_gradients_outputs_are_the_same_to_the_last_bit(algorithm, module, calls, any_size):
    x = torch.randn(2, 5, 9, 9)
    with FastConvolutions():
        out = module(x)
    assert calls == [algorithm]
    assert torch.equal(out, module(x))
    actual, expected = (torch.autograd.grad(y.sum(), module.weight) for y in (out, module(x)))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.Conv2d(4, 4, 1, padding=1),
        torch.nn.Conv2d(4, 4, 1, groups=2),
        torch.nn.Conv2d(4, 4, 1).double(),
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
    with FastConvolutions():
        out = module(x)
    assert not calls
    assert torch.equal(out, module(x))


def test_context_leaves_autocast_alone(calls, any_size):
    module = torch.nn.Conv2d(4, 4, 3, padding=1)
    with FastConvolutions(), torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(1, 4, 8, 8)).dtype == torch.bfloat16
    assert not calls


def test_a_traced_model_has_plain_convolutions(calls, any_size):
    def convolve(x):
        with FastConvolutions():
            return F.conv2d(x, torch.ones(4, 4, 3, 3), padding=1)

    traced = torch.jit.trace(convolve, torch.randn(1, 4, 8, 8), check_trace=False)
    assert not calls
    assert "aten::_convolution" in str(traced.graph)


def test_context_leaves_small_convolutions_alone(calls):
    with FastConvolutions():
        torch.nn.Conv2d(128, 128, 3, padding=1)(torch.randn(1, 128, 8, 8))  # few tiles
        torch.nn.Conv2d(4, 4, 3, padding=1)(torch.randn(4, 4, 64, 64))  # few channels
    assert not calls
