"""The PyTorch side of `shrinking.py`: the same architectures, layer for layer, without any hint for a pruner."""

import torch
from torch import nn


def convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class Residual(nn.Module):
    """Convolutions with batch normalisation, and a skip that is projected where the shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)
        self.skip = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.skip(x) + self.branch(x))


def basic_block(inputs: int, width: int, stride: int) -> Residual:
    first = [convolution(inputs, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()]
    return Residual(inputs, width, stride, *first, convolution(width, width, 3), nn.BatchNorm2d(width))


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    first = [convolution(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
    second = [convolution(width, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU()]
    last = [convolution(width, 4 * width, 1), nn.BatchNorm2d(4 * width)]
    return Residual(inputs, 4 * width, stride, *first, *second, *last)


def head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


def stem(width: int) -> list[nn.Module]:
    return [convolution(3, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]


def resnet56() -> nn.Module:
    layers, inputs = [convolution(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()], 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(9):
            layers.append(basic_block(inputs, width, 2 if stage and not block else 1))
            inputs = width
    return nn.Sequential(*layers, *head(64, 10))


def resnet50() -> nn.Module:
    layers, inputs = stem(64), 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(bottleneck(inputs, 64 * 2**stage, 2 if stage and not block else 1))
            inputs = 256 * 2**stage
    return nn.Sequential(*layers, *head(2048, 1000))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        first = [nn.BatchNorm2d(inputs), nn.ReLU(), convolution(inputs, 128, 1)]
        self.layers = nn.Sequential(*first, nn.BatchNorm2d(128), nn.ReLU(), convolution(128, 32, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet121() -> nn.Module:
    layers, width = stem(64), 64
    for stage, count in enumerate((6, 12, 24, 16)):
        for _ in range(count):
            layers.append(DenseLayer(width))
            width += 32
        if stage < 3:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), convolution(width, width // 2, 1), nn.AvgPool2d(2, 2)]
            width //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), *head(width, 1000))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 5))


class Recurrent(nn.Module):
    """Two recurrent layers, and a head on the last step."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], first: int, second: int) -> None:
        super().__init__()
        self.first, self.second = cell(7, first, batch_first=True), cell(first, second, batch_first=True)
        self.classifier = nn.Linear(second, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.second(self.first(x)[0])[0][:, -1])


class RawProduct(nn.Module):
    """A multilayer perceptron whose middle layer is a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.classifier = nn.Linear(7, 12), nn.Linear(10, 5)
        self.middle = nn.Parameter(torch.randn(12, 10) / 12**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.relu(torch.relu(self.first(x)) @ self.middle))


def unit(*layers: tuple[int, int, int, int, int, bool]) -> nn.Sequential:
    """Convolutions (inputs, outputs, size, stride, groups, whether a ReLU follows) with batch normalisation."""
    modules: list[nn.Module] = []
    for *shape, activated in layers:
        modules += [convolution(*shape), nn.BatchNorm2d(shape[1])] + [nn.ReLU()] * activated
    return nn.Sequential(*modules)


class ShuffleNet(nn.Module):
    """Units of ShuffleNet v2: channel split, concatenation and channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit((3, 16, 3, 1, 1, True))
        self.basic = unit((8, 9, 1, 1, 1, True), (9, 9, 3, 1, 9, False), (9, 8, 1, 1, 1, True))
        self.down_left = unit((16, 16, 3, 2, 16, False), (16, 10, 1, 1, 1, True))
        self.down_right = unit((16, 14, 1, 1, 1, True), (14, 14, 3, 2, 14, False), (14, 10, 1, 1, 1, True))
        self.last = unit((10, 11, 1, 1, 1, True), (11, 11, 3, 1, 11, False), (11, 10, 1, 1, 1, True))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(20, 5)

    @staticmethod
    def shuffle(x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)

    def basic_unit(self, branch: nn.Module, x: torch.Tensor) -> torch.Tensor:
        kept, changed = x.chunk(2, dim=1)
        return self.shuffle(torch.cat([kept, branch(changed)], 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.basic_unit(self.basic, self.stem(x))
        x = self.shuffle(torch.cat([self.down_left(x), self.down_right(x)], 1))
        return self.classifier(self.pool(self.basic_unit(self.last, x)))


class Shuffled(nn.Module):
    """Two convolutions with a channel shuffle between them and no split."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = convolution(3, 16, 3), convolution(16, 20, 3)
        self.head = nn.Sequential(*head(20, 5)[:2])
        self.classifier = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.classifier(self.head(torch.relu(self.second(x))))


MODELS = {"ResNet-56": resnet56, "ResNet-50": resnet50, "DenseNet-121": densenet121}
HARD = {
    "MLP (control)": (perceptron, (3, 7)),
    "LSTM": (lambda: Recurrent(nn.LSTM, 12, 10), (2, 6, 7)),
    "GRU": (lambda: Recurrent(nn.GRU, 14, 9), (2, 6, 7)),
    "raw parameter": (RawProduct, (3, 7)),
    "channel shuffle": (Shuffled, (2, 3, 8, 8)),
    "ShuffleNet v2 units": (ShuffleNet, (2, 3, 8, 8)),
}
