"""The machine: its processor, the rate at which PyTorch computes on it, and what a model needs."""

import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import timed
from models import OURS, Subject, Workload
from torch import nn
from torch.nn import functional as F

MATMUL, CONVOLUTION = "matrix product", "3x3 convolution of the head"
BACKWARD = "backward of that convolution"
MATMUL_SIZE = 2048
WARM_UP_S, MEASURED_S = 0.5, 1.0


def processor() -> str:
    with open("/proc/cpuinfo") as f:
        names = [line.split(": ")[1].strip() for line in f if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe(workload: Workload) -> dict[str, Any]:
    """Names, and the multiplications (GMAC) that backbone and head need for a batch."""
    forward, step = count_macs(workload)
    return {
        "device": torch.cuda.get_device_name() if workload.device != "cpu" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "backbone_and_head_gmac": forward / 1e9,
        "training_step_gmac": step / 1e9,
    }


def count_macs(workload: Workload) -> tuple[int, int]:
    """Multiplications of the convolutions in a forward of the model, and in a training step.

    Backward takes two products of the same size where the weight is trained. Nothing is computed:
    the model is on the meta device.
    """
    subject = Subject(OURS, workload.on("meta"))
    forward = step = 0

    def count(module: nn.Conv2d, args: Any, output: torch.Tensor) -> None:
        nonlocal forward, step
        macs = output.numel() * module.weight[0].numel()
        forward += macs
        step += 3 * macs if module.weight.requires_grad else macs

    for module in subject.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    subject.predictions()
    return forward, step


def rates(workload: Workload, dtype: torch.dtype, channels: int = 256) -> dict[str, float]:
    """FLOP/s of PyTorch on this machine, warm and at its best, by what was computed.

    The convolution is one of the head's at stride 8; in bfloat16 it is channels last, as this
    package runs it. A multiplication and an addition are two operations.
    """
    device, (height, width) = workload.device, workload.image_size
    layout = torch.contiguous_format if dtype == torch.float32 else torch.channels_last
    x = torch.randn(workload.num_images, channels, -(-height // 8), -(-width // 8))
    x = x.to(device, dtype, memory_format=layout).requires_grad_()
    weight = torch.randn(channels, channels, 3, 3) / 48
    weight = weight.to(device, dtype, memory_format=layout).requires_grad_()
    out = F.conv2d(x, weight, padding=1)
    grad = torch.randn_like(out)
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=dtype)
    flop = 2 * out.numel() * weight[0].numel()
    with torch.no_grad():
        return {
            MATMUL: 2 * MATMUL_SIZE**3 / best_time(lambda: a @ a, device),
            CONVOLUTION: flop / best_time(lambda: F.conv2d(x, weight, padding=1), device),
            BACKWARD: 2 * flop / best_time(
                lambda: torch.autograd.grad(out, (x, weight), grad, retain_graph=True), device
            ),
        }  # fmt: skip


def small_convolution_is_faster(device: str, dtype: torch.dtype) -> bool:
    """Than in float32. Without units for ``dtype``, a large one would take a processor minutes."""

    def seconds(dtype: torch.dtype) -> float:
        x = torch.randn(1, 64, 16, 16, device=device, dtype=dtype)
        weight = torch.randn(64, 64, 3, 3, device=device, dtype=dtype)
        with torch.no_grad():
            return best_time(lambda: F.conv2d(x, weight, padding=1), device)

    return seconds(dtype) < seconds(torch.float32)


def best_time(function: Callable[[], Any], device: str) -> float:
    """Seconds of the fastest of many calls, after a warm-up."""
    _repeat(function, device, WARM_UP_S)
    return min(_repeat(function, device, MEASURED_S))


def _repeat(function: Callable[[], Any], device: str, seconds: float) -> list[float]:
    end = time.perf_counter() + seconds
    times = [timed(function, device)]
    while time.perf_counter() < end:
        times.append(timed(function, device))
    return times


def convolution_seconds(rates_of_type: dict[str, float]) -> float:
    """Seconds of forward and backward of the convolution, for every operation of its forward."""
    return 1 / rates_of_type[CONVOLUTION] + 2 / rates_of_type[BACKWARD]
