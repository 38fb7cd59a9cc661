"""Labelled images, and what happens to them before they enter a network."""

from jaxtransfer.data import augment as augment
from jaxtransfer.data.arrays import ArrayData as ArrayData
from jaxtransfer.data.arrays import as_array_data as as_array_data
from jaxtransfer.data.arrays import as_data as as_data
from jaxtransfer.data.arrays import batch_indices as batch_indices
from jaxtransfer.data.arrays import few_shot as few_shot
from jaxtransfer.data.digits import few_shot_split as few_shot_split
from jaxtransfer.data.digits import load_digits as load_digits
from jaxtransfer.data.folder import image_folder as image_folder
from jaxtransfer.data.grain_source import grain_data as grain_data
from jaxtransfer.data.huggingface import huggingface_data as huggingface_data
from jaxtransfer.data.loader import Loader as Loader
from jaxtransfer.data.loader import Workers as Workers
from jaxtransfer.data.loader import evaluation_batches as evaluation_batches
from jaxtransfer.data.prefetch import prefetch_to_device as prefetch_to_device
from jaxtransfer.data.preprocess import check_images as check_images
from jaxtransfer.data.preprocess import preprocess_images as preprocess_images
from jaxtransfer.data.source import Data as Data
from jaxtransfer.data.splits import k_folds as k_folds
from jaxtransfer.data.splits import slice_split as slice_split
from jaxtransfer.data.splits import stratified_split as stratified_split
from jaxtransfer.data.stored import StoredData as StoredData
from jaxtransfer.data.table import image_table as image_table
from jaxtransfer.data.targets import multi_hot as multi_hot
from jaxtransfer.data.targets import read_targets as read_targets
from jaxtransfer.data.tfds import tfds_data as tfds_data
