"""What every matcher keeps to: its targets, its registry, and where PyTorch takes it."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from retinanet_plugin import MATCHER_REGISTRY, UserError, add_retinanet_config
from retinanet_plugin.matching import Targets, check_gt_classes, padded_truth

K = 7
MATCHERS = ["IoUMatcher", "ATSSMatcher"]


def make_matcher(name="IoUMatcher"):
    cfg = get_cfg()
    add_retinanet_config(cfg)
    cfg.MODEL.RETINANET.NUM_CLASSES = K
    return MATCHER_REGISTRY.get(name)(cfg)


def some_boxes(num, seed=0):
    torch.manual_seed(seed)
    corners = torch.rand(num, 2) * 100
    return torch.cat([corners, corners + 5 + torch.rand(num, 2) * 50], dim=1)


def some_anchors():
    return [Boxes(some_boxes(500, seed=1)), Boxes(some_boxes(100, seed=2))]


def instances(boxes, classes=None):
    classes = torch.arange(len(boxes)) % K if classes is None else torch.tensor(classes)
    return Instances((150, 150), gt_boxes=Boxes(boxes), gt_classes=classes)


def some_images():
    return [instances(some_boxes(9, seed=3)), instances(some_boxes(0)), instances(some_boxes(2))]


def assert_same(found, expected):
    for ours, theirs in zip(found[:2], expected[:2]):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", MATCHERS)
def test_what_a_matcher_gives(name):
    matcher = make_matcher(name)
    targets = matcher(some_anchors(), some_images())
    assert isinstance(targets, Targets)
    assert targets.gt_labels.shape == (3, 600)
    assert targets.gt_labels.dtype == torch.int64
    assert -1 <= targets.gt_labels.min() < targets.gt_labels.max() == K
    assert targets.matched_gt_boxes.shape == (3, 600, 4)
    assert not targets.matched_gt_boxes[targets.gt_labels == K].any()
    assert targets.gt_qualities is None
    assert not matcher.needs_predictions
    assert matcher.fixed_shapes == hasattr(matcher, "match_padded")


# ------------------------------------------------------------------ where PyTorch takes it


@pytest.mark.parametrize("name", MATCHERS)
def test_modes_and_types_change_nothing(name):
    matcher, anchors, images = make_matcher(name), some_anchors(), some_images()
    expected = matcher(anchors, images)
    with torch.inference_mode():
        assert_same(matcher(some_anchors(), some_images()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(matcher(anchors, images), expected)
    for image in images:
        image.gt_classes = image.gt_classes.int()
        image.gt_boxes.tensor.requires_grad_()
    assert_same(matcher(anchors, images), expected)
    assert not matcher(anchors, images).matched_gt_boxes.requires_grad


@pytest.mark.parametrize("name", MATCHERS)
def test_threads_change_nothing(name):
    anchors, images, threads = some_anchors(), some_images(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = make_matcher(name)(anchors, images)
        torch.set_num_threads(2)
        assert_same(make_matcher(name)(anchors, images), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MATCHERS)
def test_the_default_type_changes_nothing(name, dtype):
    matcher, anchors, images = make_matcher(name), some_anchors(), some_images()
    expected = matcher(anchors, images)
    try:
        torch.set_default_dtype(dtype)
        assert_same(matcher(anchors, images), expected)
        if matcher.fixed_shapes:
            assert_same(matcher.match_padded(anchors, *padded_truth(images)), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_boxes_of_other_types():
    """IoUs in float64 as stock's, which tell apart what is equal in float32; halves in float32."""
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 11.0]]))]
    image = instances(torch.tensor([[0.0, 0.0, 10.0, 10.5]]), [3])
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        image.gt_boxes.tensor = image.gt_boxes.tensor.to(dtype)
        gt_labels, boxes, _ = make_matcher()(anchors, [image])
        assert gt_labels.tolist() == [[3, 3]]
        assert boxes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # In float32 the second box has the first one's IoU, so the first box would win.
    image = instances(some_boxes(2), [1, 2])
    close = [[0, 0, 10, 10 - 1e-9], [0, 0, 10, 10]]
    image.gt_boxes.tensor = torch.tensor(close, dtype=torch.float64)
    gt_labels, *_ = make_matcher()(anchors, [image])
    assert gt_labels.tolist() == [[2, 2]]


def fake_cuda_needs_a_driver():
    """Whether this PyTorch (2.4) asks a GPU even where tensors on it are fake."""
    try:
        with FakeTensorMode(), torch.device("cuda"):
            torch.ones(1).copy_(torch.zeros(1))
    except RuntimeError:
        return True
    return False


FAKE_CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(fake_cuda_needs_a_driver(), reason="asks for a driver")
)


@pytest.mark.parametrize("device", ["cpu", FAKE_CUDA])
def test_fake_tensors_need_no_values_and_leave_nothing_behind(device):
    matcher = make_matcher()
    expected = matcher(some_anchors(), some_images())
    with FakeTensorMode(), torch.device(device):
        anchors, images = [Boxes(torch.rand(600, 4))], [instances(torch.rand(3, 4))]
        check_gt_classes(images, K, ["a.jpg"])
        targets = matcher(anchors, images)
        assert targets.gt_labels.shape == (1, 600)
        assert targets.gt_labels.device.type == device
    assert_same(matcher(some_anchors(), some_images()), expected)


@pytest.mark.filterwarnings("ignore")  # that tracing is on its way out
def test_a_recorded_program_keeps_no_values():
    anchors, classes = some_anchors(), torch.arange(9) % K

    def labels(boxes):
        image = Instances((150, 150), gt_boxes=Boxes(boxes), gt_classes=classes)
        return make_matcher()(anchors, [image]).gt_labels

    program = torch.jit.trace(labels, some_boxes(9, seed=4))
    others = some_boxes(9, seed=5)
    assert torch.equal(program(others), labels(others))


@pytest.mark.filterwarnings("ignore")  # that a loop stands in for some operations
def test_vmap_over_the_boxes_of_images():
    anchors, classes, boxes = some_anchors(), torch.arange(9) % K, some_boxes(18).view(2, 9, 4)

    def labels(boxes):
        image = Instances((150, 150), gt_boxes=Boxes(boxes), gt_classes=classes)
        return make_matcher()(anchors, [image]).gt_labels

    assert torch.equal(torch.vmap(labels)(boxes), torch.stack([labels(some) for some in boxes]))


@pytest.mark.parametrize("name", MATCHERS)
def test_ground_truth_elsewhere_is_refused(name):
    images = [*some_images(), instances(some_boxes(2)).to("meta")]
    message = "^gt_boxes of image 3 of the batch is on meta but the anchors are on cpu: give "
    with pytest.raises(UserError, match=message):
        make_matcher(name)(some_anchors(), images)


# ------------------------------------------------------------------ ground truth


def test_truth_is_padded_to_a_power_of_two():
    three, ten = instances(some_boxes(3)), instances(some_boxes(10))
    boxes, classes = padded_truth([three, instances(some_boxes(0)), ten])
    assert boxes.shape == (3, 16, 4)
    assert classes.shape == (3, 16)
    assert torch.equal(boxes[0, :3], three.gt_boxes.tensor)
    assert classes[2].tolist() == ten.gt_classes.tolist() + [-1] * 6
    assert not boxes[1].any()
    assert (classes[1] == -1).all()
    for num, padded in [(0, 8), (3, 8), (8, 8), (64, 64), (65, 128)]:
        assert padded_truth([instances(some_boxes(num))])[0].shape == (1, padded, 4)


@pytest.mark.parametrize("wrong", [-1, 5, 7])
def test_a_class_that_the_model_lacks_is_refused(wrong):
    images = [instances(some_boxes(2), [0, 4]), instances(some_boxes(3), [1, wrong, 2])]
    message = (
        rf"^b\.jpg has a box of class {wrong} but MODEL\.RETINANET\.NUM_CLASSES is 5 "
        r"\(classes 0 to 4\): correct the annotation or set NUM_CLASSES to "
    )
    with pytest.raises(UserError, match=message):
        check_gt_classes(images, 5, ["a.jpg", "b.jpg"])
    check_gt_classes([images[0], instances(some_boxes(0))], 5, ["a.jpg", "b.jpg"])


class Operations(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_on_a_gpu_the_device_checks_classes_and_nothing_waits():
    """Fake tensors refuse every operation that would read a value."""
    with FakeTensorMode(), torch.device("cuda"):
        images = [instances(torch.rand(num, 4)) for num in (3, 0, 5)]
        with Operations() as operations:
            check_gt_classes(images, 5, ["a.jpg", "b.jpg", "c.jpg"])
    assert sum("_assert_async" in name for name in operations.names) == 1
    assert not any("copy" in name for name in operations.names)


def test_cuda_takes_the_message_of_any_batch(monkeypatch):
    """It refuses messages of 255 bytes and more, whatever the check says."""
    messages = []
    monkeypatch.setattr(torch, "_assert_async", lambda is_true, message: messages.append(message))
    with torch.device("meta"):
        images = [instances(torch.rand(1, 4)) for _ in range(64)]
    check_gt_classes(images, 1_000_000, [f"{'photographs/' * 20}{i}.jpg" for i in range(64)])
    (message,) = messages
    assert len(message.encode()) < 255
