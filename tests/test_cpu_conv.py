"""Fast algorithms compute the convolution, forward and backward, to float32's rounding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from retinanet_plugin.execution.cpu_conv import FastConvolutions, pointwise, tiles, winograd
from retinanet_plugin.execution.cpu_conv.convolution import Convolution

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
        out = algorithm.convolve(x, weight, bias, stride)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    grad = LAYOUTS[layout](torch.randn_like(expected))
    with torch.no_grad():
        actual = algorithm.gradients(grad, x, weight, stride, True, True)
    wanted = torch.autograd.grad(expected, (x, weight), grad)
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_gradients_by_the_input_are_laid_out_as_it_is(case, layout):
    algorithm, kernel, stride = CASES[case]
    x, weight, _ = (t.detach() for t in operands((2, 8, 12), kernel))
    x = LAYOUTS[layout](x)
    grad = F.conv2d(x, weight, None, stride, kernel // 2)
    grad_input, grad_weight = algorithm.gradients(grad, x, weight, stride, True, False)
    assert grad_input.stride() == x.stride()
    assert grad_weight is None


@pytest.mark.parametrize("case", CASES)
def test_gradients_that_nobody_wants_are_left_out(case):
    algorithm, kernel, stride = CASES[case]
    x, weight, bias = operands((1, 8, 8), kernel, torch.float32)
    x.requires_grad_(False)
    weight.requires_grad_(False)
    padding = (kernel // 2, kernel // 2)
    out = Convolution.apply(x, weight, bias, stride, padding, algorithm)
    (grad,) = torch.autograd.grad(out.sum(), bias)
    torch.testing.assert_close(grad, bias.new_full((7,), out[0, 0].numel()))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_differentiable_again(case):
    algorithm, kernel, stride = CASES[case]
    x, weight, bias = operands((1, 5, 6), kernel, channels=2, out_channels=3)
    padding = (kernel // 2, kernel // 2)
    assert torch.autograd.gradgradcheck(
        lambda *args: Convolution.apply(*args, stride, padding, algorithm), (x, weight, bias)
    )


def test_what_is_tiny_in_a_gradient_is_zero():
    x, weight, _ = (t.detach() for t in operands((1, 8, 8), 3, torch.float32))
    grad = torch.full((1, 7, 8, 8), 1e-39)  # denormal
    grad[0, 0, 0, 0] = 1.0
    found = winograd.gradients(grad, x, weight, (1, 1), True, True)
    only = torch.zeros_like(grad)
    only[0, 0, 0, 0] = 1.0
    expected = winograd.gradients(only, x, weight, (1, 1), True, True)
    assert all(torch.equal(*pair) for pair in zip(found, expected))
    assert not any(is_denormal(part).any() for part in found)


def is_denormal(x):
    return (x != 0) & (x.abs() < torch.finfo(x.dtype).tiny)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_rounding_is_near_that_of_conv2d(scale):
    x, weight, bias = (t.detach() for t in operands((2, 32, 32), 3, torch.float32, 256, 32))
    x[0, :, 3, 5] *= scale  # outliers
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)

    def error(out):
        return (out - exact).norm() / exact.norm()

    plain = error(F.conv2d(x, weight, bias, padding=1))
    assert plain > 0
    # Some convolutions add up in so many parts that they round less than one product does.
    assert error(winograd.convolve(x, weight, bias, (1, 1))) < 8 * max(plain, 2**-24)


@pytest.mark.parametrize("case", CASES)
def test_output_can_be_changed_in_place(case):
    algorithm, kernel, stride = CASES[case]
    x, weight, bias = operands((1, 8, 8), kernel)
    padding = (kernel // 2, kernel // 2)
    F.relu_(Convolution.apply(x, weight, bias, stride, padding, algorithm)).sum().backward()
    expected = F.conv2d(x, weight, bias, stride, padding).relu().sum()
    torch.testing.assert_close(weight.grad, torch.autograd.grad(expected, weight)[0])


MODULES = [
    (winograd, torch.nn.Conv2d(5, 7, 3, padding=1)),
    (pointwise, torch.nn.Conv2d(5, 7, 1)),
    (pointwise, torch.nn.Conv2d(5, 7, 1, stride=2, bias=False)),
]


@pytest.mark.parametrize(("algorithm", "module"), MODULES, ids=str)
def test_in_inference_outputs_are_the_algorithms(algorithm, module, fast_cpu_conv):
    module = torch.nn.Sequential(module, torch.nn.ReLU())
    x = torch.randn(2, 5, 9, 9)
    with FastConvolutions(fast_outputs=True), torch.no_grad():
        out = module(x)
    assert [call.__module__ for call in fast_cpu_conv] == [algorithm.__name__]
    torch.testing.assert_close(out, module(x), rtol=1e-4, atol=1e-5)
    assert len(fast_cpu_conv) == 1  # outside of the context


@pytest.mark.parametrize(("algorithm", "module"), MODULES, ids=str)
def test_in_training_outputs_are_the_same_to_the_last_bit(algorithm, module, fast_cpu_conv):
    x = torch.randn(2, 5, 9, 9)
    with FastConvolutions(fast_outputs=False):
        out = module(x)
        with torch.no_grad():
            assert torch.equal(out, module(x))
    assert torch.equal(out, module(x))
    assert fast_cpu_conv == []
    actual, expected = (torch.autograd.grad(y.sum(), module.weight) for y in (out, module(x)))
    assert [call.__module__ for call in fast_cpu_conv] == [algorithm.__name__]
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
def test_context_leaves_other_convolutions_alone(module, fast_cpu_conv):
    x = torch.randn(1, 4, 8, 8, dtype=module.weight.dtype)
    with FastConvolutions(fast_outputs=True):
        out = module(x)
        out.sum().backward()
    assert fast_cpu_conv == []
    assert torch.equal(out, module(x))


@pytest.mark.parametrize("shape", [(4, 8, 8), (0, 4, 8, 8)])
def test_a_single_image_and_none(shape, fast_cpu_conv):
    module = torch.nn.Conv2d(4, 4, 3, padding=1)
    with FastConvolutions(fast_outputs=True), torch.no_grad():
        assert module(torch.randn(shape)).shape == shape
    assert fast_cpu_conv == []


def test_context_leaves_autocast_alone(fast_cpu_conv):
    module = torch.nn.Conv2d(4, 4, 3, padding=1)
    with FastConvolutions(fast_outputs=True), torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(1, 4, 8, 8)).dtype == torch.bfloat16
    assert fast_cpu_conv == []


def test_context_leaves_subclasses_of_tensors_alone(fast_cpu_conv):
    class Image(torch.Tensor):
        pass

    module = torch.nn.Conv2d(4, 4, 1)
    with FastConvolutions(fast_outputs=True), torch.no_grad():
        assert type(module(torch.randn(1, 4, 8, 8).as_subclass(Image))) is Image
    assert fast_cpu_conv == []


def test_small_convolutions_are_left_to_pytorch():
    small = torch.empty(1, 128, 8, 8), torch.empty(128, 128, 3, 3)  # few tiles
    narrow = torch.empty(4, 4, 64, 64), torch.empty(4, 4, 3, 3)  # few channels
    large = torch.empty(1, 128, 64, 64), torch.empty(128, 128, 3, 3)
    found = [winograd.is_faster(*x, (1, 1), (1, 1)) for x in (small, narrow, large)]
    assert found == [False, False, True]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("channels", "biases"), [(5, 7), (3, 7), (4, 1), (4, 6)])
def test_shapes_that_do_not_fit_are_pytorchs_error(kernel, channels, biases, fast_cpu_conv):
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(7, channels, kernel, kernel)
    message = pytest.raises(RuntimeError, match=r"^Given .*weight of size \[7")
    with FastConvolutions(fast_outputs=True), torch.no_grad(), message:
        F.conv2d(x, weight, torch.zeros(biases), padding=kernel // 2)
    assert fast_cpu_conv == []


@pytest.mark.parametrize("algorithm", [winograd, pointwise])
def test_the_default_device_changes_nothing(algorithm):
    kernel = 3 if algorithm is winograd else 1
    x, weight, _ = (t.detach() for t in operands((1, 8, 8), kernel))
    expected = algorithm.convolve(x, weight, None, (1, 1))
    expected_gradients = algorithm.gradients(expected, x, weight, (1, 1), True, True)
    with torch.device("meta"):
        out = algorithm.convolve(x, weight, None, (1, 1))
        gradients = algorithm.gradients(expected, x, weight, (1, 1), True, True)
    assert torch.equal(out, expected)
    assert all(torch.equal(*pair) for pair in zip(gradients, expected_gradients))


def test_numbers_of_other_libraries(fast_cpu_conv):
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    with FastConvolutions(fast_outputs=True), torch.no_grad():
        out = F.conv2d(x, weight, None, np.int64(1), np.int64(1))
    assert torch.equal(out, F.conv2d(x, weight, None, 1, 1))
