"""Imported by open_clip for frozen ResNets; a vision transformer has none."""


class FrozenBatchNorm2d:
    def __init__(self, *args: object) -> None:
        raise NotImplementedError("frozen batch norms need torchvision itself")
