"""Networks that take a norm: `Net(input_shape, num_classes, *, norm, activation, norm_position, init, ...)`."""

from normzoo.models._base import Network as Network
from normzoo.models.block import Block as Block
from normzoo.models.convnet import ConvNet as ConvNet
from normzoo.models.init import Init as Init
from normzoo.models.init import Kaiming as Kaiming
from normzoo.models.init import Normal as Normal
from normzoo.models.init import Orthogonal as Orthogonal
from normzoo.models.init import TorchDefault as TorchDefault
from normzoo.models.init import Xavier as Xavier
from normzoo.models.mlp import MLP as MLP
from normzoo.models.resnet import ResNet as ResNet
