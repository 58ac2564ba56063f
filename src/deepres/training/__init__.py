"""Training, resuming and evaluating."""

import sys
from types import ModuleType

# Where TensorFlow is installed, TensorBoard would spend seconds on loading it to write events, which it can do itself.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
