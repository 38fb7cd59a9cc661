"""Random changes of images while a network trains: on the device, inside jit, functions of a key.

An augmentation is a frozen dataclass, called as `augment(key, batch) -> batch` on float32 images in
[0, 1] of shape (batch, height, width, channel). Those that change images alone have
`on_images(key, images) -> images` too. What they do for given numbers is a function: `rotate`,
`adjust_hue`, `cutmix` and others. Everything is one program without branches over a whole batch,
which may be spread over devices, and no value leaves [0, 1].
"""

from jaxtransfer.data.augment.base import Augment as Augment
from jaxtransfer.data.augment.base import Compose as Compose
from jaxtransfer.data.augment.base import ImageAugment as ImageAugment
from jaxtransfer.data.augment.colour import ColorJitter as ColorJitter
from jaxtransfer.data.augment.colour import RandomGrayscale as RandomGrayscale
from jaxtransfer.data.augment.colour import adjust_brightness as adjust_brightness
from jaxtransfer.data.augment.colour import adjust_contrast as adjust_contrast
from jaxtransfer.data.augment.colour import adjust_hue as adjust_hue
from jaxtransfer.data.augment.colour import adjust_saturation as adjust_saturation
from jaxtransfer.data.augment.colour import grayscale as grayscale
from jaxtransfer.data.augment.crop import HorizontalFlip as HorizontalFlip
from jaxtransfer.data.augment.crop import RandomCrop as RandomCrop
from jaxtransfer.data.augment.crop import RandomResizedCrop as RandomResizedCrop
from jaxtransfer.data.augment.crop import VerticalFlip as VerticalFlip
from jaxtransfer.data.augment.crop import resized_crop as resized_crop
from jaxtransfer.data.augment.erasing import RandomErasing as RandomErasing
from jaxtransfer.data.augment.mixing import CutMix as CutMix
from jaxtransfer.data.augment.mixing import MixUp as MixUp
from jaxtransfer.data.augment.mixing import MixUpOrCutMix as MixUpOrCutMix
from jaxtransfer.data.augment.mixing import cutmix as cutmix
from jaxtransfer.data.augment.mixing import cutmix_box as cutmix_box
from jaxtransfer.data.augment.mixing import mixup as mixup
from jaxtransfer.data.augment.mixing import soft_labels as soft_labels
from jaxtransfer.data.augment.policy import RAND_AUGMENT as RAND_AUGMENT
from jaxtransfer.data.augment.policy import RAND_AUGMENT_INCREASING as RAND_AUGMENT_INCREASING
from jaxtransfer.data.augment.policy import TRIVIAL_AUGMENT_WIDE as TRIVIAL_AUGMENT_WIDE
from jaxtransfer.data.augment.policy import Operation as Operation
from jaxtransfer.data.augment.policy import RandAugment as RandAugment
from jaxtransfer.data.augment.policy import apply_operations as apply_operations
from jaxtransfer.data.augment.policy import trivial_augment as trivial_augment
from jaxtransfer.data.augment.presets import standard_augment as standard_augment
from jaxtransfer.data.augment.presets import strong_augment as strong_augment
from jaxtransfer.data.augment.tone import adjust_sharpness as adjust_sharpness
from jaxtransfer.data.augment.tone import autocontrast as autocontrast
from jaxtransfer.data.augment.tone import equalize as equalize
from jaxtransfer.data.augment.tone import invert as invert
from jaxtransfer.data.augment.tone import posterize as posterize
from jaxtransfer.data.augment.tone import solarize as solarize
from jaxtransfer.data.augment.tone import solarize_add as solarize_add
from jaxtransfer.data.augment.warp import RandomAffine as RandomAffine
from jaxtransfer.data.augment.warp import RandomRotation as RandomRotation
from jaxtransfer.data.augment.warp import affine as affine
from jaxtransfer.data.augment.warp import affine_matrices as affine_matrices
from jaxtransfer.data.augment.warp import rotate as rotate
from jaxtransfer.data.augment.warp import shear_x as shear_x
from jaxtransfer.data.augment.warp import shear_y as shear_y
from jaxtransfer.data.augment.warp import translate_x as translate_x
from jaxtransfer.data.augment.warp import translate_y as translate_y
