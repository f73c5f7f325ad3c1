import sys


def define_torchvision_operators():
    """To call before `import timm`: torchvision's CPU build does not define the operators that it is imported for."""
    if "torchvision" in sys.modules:
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # Where it is forgotten, so are the operators.
    define_torchvision_operators.kept = library
