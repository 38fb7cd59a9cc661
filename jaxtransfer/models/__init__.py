"""Networks: what is known about each, how it is built, and how a user's own one enters."""

from jaxtransfer.models.catalog import build as build
from jaxtransfer.models.catalog import families as families
from jaxtransfer.models.catalog import init as init
from jaxtransfer.models.catalog import is_network as is_network
from jaxtransfer.models.catalog import list_models as list_models
from jaxtransfer.models.catalog import spec_of as spec_of
from jaxtransfer.models.imagenet import imagenet_classes as imagenet_classes
from jaxtransfer.models.model import AS_THEY_COME as AS_THEY_COME
from jaxtransfer.models.model import Model as Model
from jaxtransfer.models.recognise import Guess as Guess
from jaxtransfer.models.recognise import recognise as recognise
from jaxtransfer.models.saved import load_model as load_model
from jaxtransfer.models.spec import ModelSpec as ModelSpec
from jaxtransfer.models.spec import Preprocess as Preprocess
from jaxtransfer.models.spec import Source as Source
from jaxtransfer.models.spec import Weights as Weights
from jaxtransfer.models.weights import load_network as load_network
from jaxtransfer.models.weights import load_weights as load_weights
