"""Labelled images, and what happens to them before they enter a network."""

from jaxtransfer.data import augment as augment
from jaxtransfer.data.arrays import ArrayData as ArrayData
from jaxtransfer.data.arrays import as_array_data as as_array_data
from jaxtransfer.data.arrays import batch_indices as batch_indices
from jaxtransfer.data.arrays import few_shot as few_shot
from jaxtransfer.data.digits import few_shot_split as few_shot_split
from jaxtransfer.data.digits import load_digits as load_digits
from jaxtransfer.data.preprocess import check_images as check_images
from jaxtransfer.data.preprocess import preprocess_images as preprocess_images
from jaxtransfer.data.source import Data as Data
