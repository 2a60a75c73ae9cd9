"""What every matcher shares: ground truth in one piece, the best box of an anchor, its targets."""

import torch

# Fewest boxes that ground truth is padded to.
LEAST_BOXES = 8


def padded_truth(gt_instances):
    """Ground truth of a batch in one shape; few shapes are possible, so that few CUDA graphs are.

    Args:
        gt_instances (list[Instances]): N images with ``gt_boxes`` and ``gt_classes``.

    Returns:
        tuple[Tensor, Tensor]: boxes (N, M, 4), absolute pixels, zeros in the padding; and classes
        (N, M), int64, -1 in the padding. M is a power of two: the smallest that holds the boxes of
        every image, or 8.
    """
    most = max(LEAST_BOXES, *(len(instances) for instances in gt_instances))
    shape = len(gt_instances), 1 << (most - 1).bit_length()
    boxes = gt_instances[0].gt_boxes.tensor.new_zeros(*shape, 4)
    classes = gt_instances[0].gt_classes.new_full(shape, -1)
    for image, instances in enumerate(gt_instances):
        boxes[image, : len(instances)] = instances.gt_boxes.tensor
        classes[image, : len(instances)] = instances.gt_classes
    return boxes, classes


class GroundTruth:
    """The M boxes of all N images in one piece, so that a batch is matched as one image is.

    Attributes: ``boxes`` (M, 4), absolute pixels of each box's own image; ``classes`` (M,) int64;
    ``image`` (M,) int64, which image a box is in; ``first_box`` (N,) int64, each image's first.
    """

    def __init__(self, gt_instances):
        """``gt_instances`` (list[Instances]): N images with ``gt_boxes`` and ``gt_classes``."""
        counts = [len(instances) for instances in gt_instances]
        self.boxes = torch.cat([instances.gt_boxes.tensor for instances in gt_instances])
        self.classes = torch.cat([instances.gt_classes for instances in gt_instances])
        counts = torch.tensor(counts, device=self.boxes.device)
        images = torch.arange(len(counts), device=self.boxes.device)
        self.image = images.repeat_interleave(counts, output_size=len(self.boxes))
        self.first_box = counts.cumsum(0) - counts

    def no_targets(self, num_anchors, num_classes):
        """Labels (N, R), int64, that are all background: K; matched boxes (N, R, 4), all zeros."""
        shape = len(self.first_box), num_anchors
        return self.classes.new_full(shape, num_classes), self.boxes.new_zeros(*shape, 4)


class BestBoxes:
    """For each anchor of each image, the box with the highest IoU of those offered so far.

    Of equal IoUs the first box wins. IoU and box are ranked by one integer: non-negative floats
    order as their bits do, so ``bits * 2^32 - box`` needs one maximum, in any order of offers.
    """

    def __init__(self, truth, num_anchors):
        """``truth`` (GroundTruth) of N images, and R."""
        self.image_of_box, self.first_box = truth.image, truth.first_box
        self.num_anchors = num_anchors
        # So far the first box of the image, at IoU 0.
        self.rank = self._all_anchors(-self.first_box)

    def offer(self, box, anchor, iou):
        """Offer pairs of boxes and anchors, by their indices (P,), and their IoUs (P,), float32."""
        slot = self.image_of_box[box] * self.num_anchors + anchor
        rank = (iou.view(torch.int32).long() << 32) - box
        self.rank.scatter_reduce_(0, slot, rank, "amax")

    def set_default(self, box):
        """Give anchors without offers the first of the boxes ``box`` (P,) that their image has.

        Images that have none of these boxes keep their first box.
        """
        first = self.first_box.scatter_reduce(
            0, self.image_of_box[box], box, "amin", include_self=False
        )
        self.rank = torch.where(self.taken(), self.rank, self._all_anchors(-first))

    def _all_anchors(self, of_image):
        return of_image[:, None].repeat(1, self.num_anchors).flatten()

    def taken(self):
        """Whether a box of IoU above 0 was offered to an anchor, (N * R,), bool."""
        return self.rank > 0

    def get(self, slot):
        """IoU and box of slots ``image * R + anchor`` (P,)."""
        rank = self.rank[slot]
        box = -rank & 0xFFFFFFFF
        return ((rank + box) >> 32).int().view(torch.float32), box
