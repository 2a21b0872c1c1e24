"""Settings that hold for every test."""

import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "0")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "100"
sys.path.insert(0, str(Path(__file__).parent))
logging.disable(logging.WARNING)
