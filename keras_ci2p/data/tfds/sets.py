"""Finding and preparing sets of TFDS by name."""

import contextlib
import importlib
import os
import re
import sys
import warnings
from pathlib import Path

from keras_ci2p.data.folder import DataError
from keras_ci2p.extras import require

PREFIX = "tfds:"
FORMAT = "array_record"
# Sets whose builders are in this package; their metadata list `(name, reason)` of the files left out under this key.
OWN_SETS = {"animals10": "keras_ci2p.data.tfds.animals10"}
UNREADABLE = "unreadable_files"
_NAME = re.compile(r"(\w+)(/[\w.+-]+)?(:\d+\.(\d+|\*)\.(\d+|\*))?", re.ASCII)


def import_tfds():
    return require("tensorflow_datasets", extra="tfds")


def set_of(name):
    """NAME of "NAME[/CONFIG][:VERSION]"; DataError for anything else, such as names of sets that run foreign code."""
    if match := _NAME.fullmatch(name):
        return match[1]
    raise DataError(f"A set of TFDS is named NAME[/CONFIG][:1.2.3]. Received: {name!r}")


def prepared_directory(name, data_dir=None):
    """The `pathlib.Path` of a set that is prepared, `DATA_DIR/NAME/[CONFIG/]VERSION`; None where it is not.

    Args:
        name: "NAME[/CONFIG][:VERSION]"; without a version, the newest that is prepared.
        data_dir: Where the sets of TFDS are; None for $TFDS_DATA_DIR, else `~/tensorflow_datasets`.
    """
    _know(name)
    from_files = require("tensorflow_datasets.core.read_only_builder", extra="tfds").builder_from_files
    try:
        return Path(from_files(name, data_dir=_data_dir(data_dir)).data_dir)
    except import_tfds().core.DatasetNotFoundError:
        return None


def find_builder(name, data_dir=None):
    """The `tfds.core.DatasetBuilder` of a set; DataError for a name that TFDS does not know."""
    _know(name)
    try:
        return import_tfds().builder(name, data_dir=_data_dir(data_dir))
    except (ValueError, AssertionError) as error:
        # TFDS goes on with some hundred names.
        raise DataError(f"TFDS has no set {name}: {str(error).strip().splitlines()[0]}") from error


def prepare_tfds(name, source=None, data_dir=None):
    """Downloads a set if need be and prepares it as ArrayRecord. An interruption leaves nothing that looks prepared.

    Args:
        name, data_dir: As in `prepared_directory`.
        source: For `animals10` its archive or folder, for other sets TFDS's `manual_dir`; None for TFDS's own.

    Returns:
        As `prepared_directory`.

    Raises:
        DataError: It could not be had or prepared.
        ImportError: TFDS is not installed, or the set's builder needs a package, such as tensorflow, that is not.
    """
    builder = find_builder(name, data_dir)
    # TFDS 4.9.10 uses it without requiring it (tensorflow/datasets issue 11212).
    require("importlib_resources", extra="tfds")
    directory = Path(builder.data_dir)
    leftovers = sorted(map(str, directory.parent.glob(f"incomplete.*_{directory.name}")))
    if leftovers:
        warnings.warn(
            f"Of a preparation that was killed, or is still running elsewhere: {', '.join(leftovers)}", stacklevel=2
        )
    manual = {}
    if source is not None:
        if not Path(source).exists():
            raise DataError(f"There is no file or folder {source}.")
        if set_of(name) in OWN_SETS:
            builder.source = source
        else:
            manual = {"manual_dir": source}
    config = import_tfds().download.DownloadConfig(**manual)
    try:
        # TFDS's talk; standard output is the caller's.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_config=config, file_format=FORMAT)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        # A missing archive is an AssertionError; a failed download has a class of its own.
        raise DataError(f"TFDS could not prepare {name}: {error}") from error
    return directory


def _know(name):
    import_tfds()
    if module := OWN_SETS.get(set_of(name)):
        importlib.import_module(module)


def _data_dir(data_dir):
    # TFDS reads the variable once, when it is imported.
    return data_dir or os.environ.get("TFDS_DATA_DIR") or None
