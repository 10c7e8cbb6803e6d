"""What tests share; no test module imports another."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("FIELDGUIDE_REAL_DATA", ROOT.parent / "shared" / "data"))
