"""Keras computes with torch here, and leaves the user's own configuration alone.

Modules of this folder that hold what several test files need are imported by their names.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_HOME"] = tempfile.mkdtemp()
sys.path.insert(0, str(Path(__file__).parent))
