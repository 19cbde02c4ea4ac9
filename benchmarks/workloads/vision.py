"""Networks for images and signals as people write them, for one machine (`models`)."""

from __future__ import annotations

from typing import Any

from ..record import Step, Workload
from .training import classify, regress


def _resnet(tg: Any) -> Step:
    """Eight residual blocks of 32 to 256 channels with batch norm, on 32x32."""
    tg.manual_seed(0)
    nn, F = tg.nn, tg.nn.functional

    class Block(nn.Module):
        def __init__(self, i: int, o: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
            self.conv2, self.norm2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
            short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
            self.short = short if (i, stride) != (o, 1) else nn.Identity()

        def forward(self, x: Any) -> Any:
            y = F.relu(self.norm1(self.conv1(x)))
            return F.relu(self.norm2(self.conv2(y)) + self.short(x))

    layers: list[Any] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    width = 32
    for wide, stride in ((32, 1), (64, 2), (128, 2), (256, 2)):
        layers += [Block(width, wide, stride), Block(wide, wide, 1)]
        width = wide
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return classify(tg, model, 10, tg.randn(16, 3, 32, 32))


def _mobilenet(tg: Any) -> Step:
    """Six inverted residuals: 1x1, depthwise 3x3, 1x1 convolutions."""
    tg.manual_seed(0)
    nn = tg.nn

    class Inverted(nn.Module):
        def __init__(self, i: int, o: int, stride: int) -> None:
            super().__init__()
            h = 4 * i
            self.adds = (i, stride) == (o, 1)
            self.body = nn.Sequential(
                nn.Conv2d(i, h, 1, bias=False), nn.BatchNorm2d(h), nn.ReLU6(),
                nn.Conv2d(h, h, 3, stride, 1, groups=h, bias=False), nn.BatchNorm2d(h), nn.ReLU6(),
                nn.Conv2d(h, o, 1, bias=False), nn.BatchNorm2d(o),
            )  # fmt: skip

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.adds else self.body(x)

    widths = ((16, 24, 1), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 80, 2), (80, 80, 1))
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        *(Inverted(*w) for w in widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(80, 10),
    )  # fmt: skip
    return classify(tg, model, 10, tg.randn(16, 3, 32, 32))


def _vgg(tg: Any) -> Step:
    """Six 3x3 convolutions with ReLU in place, pools between them, dropout at the end."""
    tg.manual_seed(0)
    nn = tg.nn
    layers: list[Any] = []
    width = 3
    for wide in (32, 0, 64, 0, 128, 128, 0, 256, 256, 0):
        layers += [nn.Conv2d(width, wide, 3, padding=1), nn.ReLU(inplace=True)] if wide else [nn.MaxPool2d(2)]
        width = wide or width
    top = (nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10))
    return classify(tg, nn.Sequential(*layers, *top), 10, tg.randn(32, 3, 32, 32))


def _unet(tg: Any) -> Step:
    """A denoiser: group norm, SiLU, a time embedding, skips, nearest-neighbour upsampling."""
    tg.manual_seed(0)
    nn, F = tg.nn, tg.nn.functional

    class Block(nn.Module):
        def __init__(self, i: int, o: int) -> None:
            super().__init__()
            self.norm1, self.conv1 = nn.GroupNorm(8, i), nn.Conv2d(i, o, 3, padding=1)
            self.norm2, self.conv2 = nn.GroupNorm(8, o), nn.Conv2d(o, o, 3, padding=1)
            self.time, self.skip = nn.Linear(64, o), nn.Conv2d(i, o, 1) if i != o else nn.Identity()

        def forward(self, x: Any, t: Any) -> Any:
            y = self.conv1(F.silu(self.norm1(x))) + self.time(t)[:, :, None, None]
            return self.conv2(F.silu(self.norm2(y))) + self.skip(x)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Sequential(nn.Linear(64, 64), nn.SiLU())
            self.first, self.last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
            self.down1, self.down2, self.middle = Block(32, 32), Block(32, 64), Block(64, 64)
            self.up2, self.up1 = Block(128, 32), Block(64, 32)

        def forward(self, x: Any, t: Any) -> Any:
            t = self.time(t)
            a = self.down1(self.first(x), t)
            b = self.down2(F.avg_pool2d(a, 2), t)
            y = F.interpolate(self.middle(F.max_pool2d(b, 2), t), scale_factor=2.0)
            y = F.interpolate(self.up2(tg.cat([y, b], 1), t), scale_factor=2.0)
            return self.last(self.up1(tg.cat([y, a], 1), t))

    return regress(tg, UNet(), (8, 3, 32, 32), tg.randn(8, 3, 32, 32), tg.randn(8, 64))


def _dcgan(tg: Any) -> Step:
    """A generator of transposed convolutions."""
    tg.manual_seed(0)
    nn = tg.nn
    layers: list[Any] = [nn.ConvTranspose2d(64, 128, 4, 1, 0, bias=False)]
    for i, o in ((128, 64), (64, 32)):
        layers += [nn.BatchNorm2d(i), nn.ReLU(), nn.ConvTranspose2d(i, o, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(32), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh()]
    return regress(tg, nn.Sequential(*layers), (16, 3, 32, 32), tg.randn(16, 64, 1, 1))


def _autoencoder(tg: Any) -> Step:
    """Convolutions with steps of two, a code of 32 numbers, and back."""
    tg.manual_seed(0)
    nn = tg.nn
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ELU(),
        nn.Flatten(), nn.Linear(1568, 32), nn.Linear(32, 1568), nn.Unflatten(1, (32, 7, 7)),
        nn.ConvTranspose2d(32, 16, 3, 2, 1, 1), nn.ELU(), nn.ConvTranspose2d(16, 1, 3, 2, 1, 1), nn.Sigmoid(),
    )  # fmt: skip
    return regress(tg, model, (64, 1, 28, 28), tg.rand(64, 1, 28, 28))


def _signal(tg: Any) -> Step:
    """Wide one-dimensional convolutions over 4000 samples."""
    tg.manual_seed(0)
    nn = tg.nn
    layers: list[Any] = []
    width = 1
    for wide in (32, 64, 64, 128):
        layers += [nn.Conv1d(width, wide, 9, 2, 4), nn.BatchNorm1d(wide), nn.LeakyReLU(0.1)]
        width = wide
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 10))
    return classify(tg, model, 10, tg.randn(16, 1, 4000))


def _volume(tg: Any) -> Step:
    """Three-dimensional convolutions and pools over 16x16x16."""
    tg.manual_seed(0)
    nn = tg.nn
    layers: list[Any] = []
    width = 1
    for wide in (16, 32, 64):
        layers += [nn.Conv3d(width, wide, 3, 1, 1), nn.BatchNorm3d(wide), nn.ReLU(), nn.MaxPool3d(2)]
        width = wide
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * width, 10))
    return classify(tg, model, 10, tg.randn(4, 1, 16, 16, 16))


def _vit(tg: Any) -> Step:
    """A vision transformer of the library's own encoder layers, with dropout."""
    tg.manual_seed(0)
    nn = tg.nn
    width = 128

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, width, 4, 4)
            self.place, self.token = nn.Parameter(tg.zeros(1, 65, width)), nn.Parameter(tg.zeros(1, 1, width))
            layer = nn.TransformerEncoderLayer(
                width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
            )
            self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.head = nn.Linear(width, 10)

        def forward(self, x: Any) -> Any:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = tg.cat([self.token.expand(len(x), 1, -1), x], 1) + self.place
            return self.head(self.layers(x)[:, 0])

    return classify(tg, ViT(), 10, tg.randn(16, 3, 32, 32))


def _mixer(tg: Any) -> Step:
    """Two layers of an MLP-mixer over 64 patches."""
    tg.manual_seed(0)
    nn = tg.nn

    class Mixer(nn.Module):
        def __init__(self, places: int, width: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.places = nn.Sequential(nn.Linear(places, 128), nn.GELU(), nn.Linear(128, places))
            self.channels = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, width))

        def forward(self, x: Any) -> Any:
            x = x + self.places(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm2(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 128, 4, 4), nn.Linear(128, 10)
            self.layers = nn.Sequential(Mixer(64, 128), Mixer(64, 128))

        def forward(self, x: Any) -> Any:
            return self.head(self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    return classify(tg, Net(), 10, tg.randn(16, 3, 32, 32))


VISION = tuple(
    Workload(f"model-{name}", build, family="models")
    for name, build in {
        "resnet": _resnet, "mobilenet": _mobilenet, "vgg": _vgg, "unet": _unet, "dcgan": _dcgan,
        "autoencoder": _autoencoder, "conv1d": _signal, "conv3d": _volume, "vit": _vit, "mixer": _mixer,
    }.items()
)  # fmt: skip
