"""The errors that jaxtransfer raises on purpose.

    JaxTransferError
    ├── PatternError          a pattern over leaf names matches nothing, or cannot be read
    ├── TreeError             two trees that must fit together do not
    ├── FormatError           a file is not what its reader expects, or is damaged
    ├── MissingLibraryError   a format needs a library that is not installed
    ├── MappingError          rules, source tensors and target leaves do not pair up one to one
    ├── PlanError             a plan leaves a leaf unassigned, or has a group without leaves
    ├── ModelError            a model is unknown, or cannot do what is asked of it
    ├── ReferenceNotFoundError  a reference to weights leads nowhere
    ├── DownloadError         weights cannot be fetched from where they are
    ├── DataError             images or labels are not what they should be
    ├── TrainingError         training cannot go on
    │   ├── FrozenError           what should be frozen has moved, or costs what it should not
    │   └── NonFiniteLossError    the loss became NaN or infinite
    ├── CheckpointError       a training checkpoint is damaged or belongs to another run
    ├── SourceModelError      a source model is no better than a naive classifier
    └── OutputError           a result cannot be written where it should go

Every message says where, what was expected, what was found and what to do. Messages list all
problems at once, not the first one alone.
"""


class JaxTransferError(Exception):
    """Base class of every error that jaxtransfer raises on purpose."""


class PatternError(JaxTransferError):
    """A pattern over leaf names matches nothing, or cannot be read."""


class TreeError(JaxTransferError):
    """Two trees that must fit together do not."""


class FormatError(JaxTransferError):
    """A file is not what its reader expects, or is damaged."""


class MissingLibraryError(JaxTransferError):
    """A format needs a library that is not installed."""


class MappingError(JaxTransferError):
    """Rules, source tensors and target leaves do not pair up one to one."""


class PlanError(JaxTransferError):
    """A plan leaves a leaf unassigned, or has a group without leaves."""


class ModelError(JaxTransferError):
    """A model is unknown, or cannot do what is asked of it."""


class ReferenceNotFoundError(JaxTransferError):
    """A reference to weights leads nowhere."""


class DownloadError(JaxTransferError):
    """Weights cannot be fetched from where they are."""


class DataError(JaxTransferError):
    """Images or labels are not what they should be."""


class TrainingError(JaxTransferError):
    """Training cannot go on."""


class FrozenError(TrainingError):
    """What should be frozen has moved, or costs what it should not."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class CheckpointError(JaxTransferError):
    """A training checkpoint is damaged or belongs to another run."""


class SourceModelError(JaxTransferError):
    """A source model is no better than a naive classifier."""


class OutputError(JaxTransferError):
    """A result cannot be written where it should go."""
