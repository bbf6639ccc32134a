"""Settings of libraries that must be made before their import."""

from __future__ import annotations

import os
from pathlib import Path


def quiet_environment() -> None:
    """Set what Ray and torch read at import or start, unless the user has set it."""
    for key, value in {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    }.items():
        os.environ.setdefault(key, value)
    if os.path.exists(Path.home() / ".ray" / "auth_token"):
        # Ray uses its token without this setting only for clusters that it starts itself.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
